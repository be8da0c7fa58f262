"""Failed requests to an object store: which can pass and are tried again, and what the user reads.

boto3 takes most of a second to import, so it is imported where it is needed.
"""

from __future__ import annotations

import functools
import http.client
import logging
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ups.errors import FetchError, Interrupted, ObjectUnavailable, UpsError

logger = logging.getLogger(__name__)

CREDENTIALS_HINT = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE for a profile that holds them"
)
_CODES_THAT_PASS = {
    "BandwidthLimitExceeded",
    "InternalError",
    "OperationAborted",
    "RequestLimitExceeded",
    "RequestTimeout",
    "RequestTimeoutException",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
}

T = TypeVar("T")


class ObjectChanged(FetchError):
    """Raised when an object is no longer the one that `head` described."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Exponential backoff with jitter: waits of about 0.5, 1, 2, … seconds between attempts."""

    attempts: int = 6
    first_wait_s: float = 0.5
    max_wait_s: float = 8.0

    def wait_s(self, failures: int) -> float:
        longest = min(self.max_wait_s, self.first_wait_s * 2.0 ** (failures - 1))
        return longest * random.uniform(0.5, 1)


def retrying(
    call: Callable[[], T],
    *,
    uri: str,
    endpoint: str,
    retry: Retry,
    halt: threading.Event | None = None,
    progressed: Callable[[], int] = lambda: 0,
) -> T:
    """Call until it succeeds; only failures that can pass are tried again.

    Args:
        halt: ends a wait between two attempts.
        progressed: a count that grows where a failed attempt got something done; attempts are
            then counted afresh, so that a bad line slows a transfer down but does not end it.
    Raises:
        FetchError: the attempts are used up.
        ObjectUnavailable, ObjectChanged: see `explain`.
        Interrupted: `halt` is set.
    """
    halt = halt or threading.Event()
    failures, done = 0, progressed()
    while True:
        try:
            return call()
        except transport_errors() as error:
            refusal = explain(error, uri, endpoint)
            if refusal is not None:
                raise refusal from error
            failures = failures + 1 if progressed() == done else 1
            done = progressed()
            if failures >= retry.attempts:
                raise FetchError(
                    f"{uri}: gave up after {failures} attempts; the last one failed with "
                    f"{describe(error)}. Check that {endpoint} answers, then run again: "
                    "a download goes on where it stopped."
                ) from error
            wait_s, attempt = retry.wait_s(failures), f"{failures + 1} of {retry.attempts}"
            logger.info("%s: %s, attempt %s in %.1f s", uri, describe(error), attempt, wait_s)
        if halt.wait(wait_s):
            raise Interrupted(f"{uri}: stopped while waiting to try again")


@functools.cache
def transport_errors() -> tuple[type[Exception], ...]:
    """What boto3, urllib3, http.client and the socket raise."""
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    return (
        BotoCoreError,
        ClientError,
        ResponseParserError,
        HTTPError,
        http.client.HTTPException,
        OSError,
    )


def explain(error: Exception, uri: str, endpoint: str) -> UpsError | None:
    """The error for the user where trying again is no use, else None."""
    from botocore import exceptions as boto

    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
        return ObjectUnavailable(f"{uri}: found no credentials for {endpoint}; {CREDENTIALS_HINT}")
    if isinstance(error, boto.ClientError):
        return _explain_answer(error, uri, endpoint)
    passing = boto.HTTPClientError | boto.ConnectionError | boto.IncompleteReadError
    if isinstance(error, boto.BotoCoreError) and not isinstance(error, passing):
        return ObjectUnavailable(f"{uri}: {describe(error)}")
    return None


def _explain_answer(error: Exception, uri: str, endpoint: str) -> UpsError | None:
    code, status = answer(error)
    if status in (408, 429) or status >= 500 or code in _CODES_THAT_PASS:
        return None
    if status in (412, 416):
        return ObjectChanged(f"{uri}: the object changed while it was read")
    if code == "NoSuchBucket":
        reason = f"no such bucket at {endpoint}; create it, or correct data.bucket"
    elif status == 404:
        reason = f"no such key at {endpoint}; upload it, or correct data.sources"
    elif status in (401, 403):
        reason = f"{endpoint} refuses access ({code}); expected credentials that may read it: "
        reason += CREDENTIALS_HINT
    else:
        reason = f"{endpoint} answers {describe(error)}; check the endpoint (AWS_ENDPOINT_URL_S3) "
        reason += "and the region (AWS_DEFAULT_REGION)"
    return ObjectUnavailable(f"{uri}: {reason}")


def answer(error: BaseException | None) -> tuple[str, int]:
    """(code, HTTP status) of the store's answer; ("", 0) where there was none."""
    response = getattr(error, "response", None) or {}
    code = str(response.get("Error", {}).get("Code", ""))
    return code, int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def describe(error: Exception) -> str:
    """The error in a few words, without what the request was signed with."""
    code, status = answer(error)
    if status:
        return f"{code} (HTTP {status})" if code != str(status) else f"HTTP {status}"
    return f"{type(error).__name__}: {error}"
