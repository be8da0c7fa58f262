"""Failed requests to an object store: which can pass and are tried again, and what the user reads.

boto3 takes most of a second to import, so it is imported where it is needed.
"""

from __future__ import annotations

import email.utils
import functools
import http.client
import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ups.data.web import is_web
from ups.errors import ChecksumMismatch, FetchError, Interrupted, ObjectUnavailable, UpsError

logger = logging.getLogger(__name__)

CREDENTIALS_HINT = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE for a profile that holds them"
)
RESTORE_HINT = (
    "restore it (`aws s3api restore-object`), or copy it into another storage class, first"
)
SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_MOST_WORDS = 300  # of a store's message that are shown
NOTE_EVERY_S = 10.0  # between two lines about a store that fails
LONGEST_PAUSE_S = 120.0  # that a store may ask for
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

_NEW_TOKEN = "get new credentials (AWS_SESSION_TOKEN, or log in to the AWS profile anew)"
# What the store refuses whichever object it is asked for, and what to do.
_REMEDIES = {
    "RequestTimeTooSkewed": "the clock of this machine is wrong by more than 15 minutes: set it "
    "(`timedatectl set-ntp true`)",
    "ExpiredToken": f"the session token has expired: {_NEW_TOKEN}",
    "ExpiredTokenException": f"the session token has expired: {_NEW_TOKEN}",
    "TokenRefreshRequired": f"the session token has expired: {_NEW_TOKEN}",
    "InvalidToken": f"it does not know the session token: {_NEW_TOKEN}, or unset it",
}
_ELSEWHERE = {
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "PermanentRedirect",
    "TemporaryRedirect",
}

_TLS_FAULTS = ("CERTIFICATE_VERIFY_FAILED", "WRONG_VERSION_NUMBER")

T = TypeVar("T")

_notes: dict[tuple[str, int], float] = {}  # when the next line is due
_notes_lock = threading.Lock()


class StoreRefuses(ObjectUnavailable):
    """Raised when the store says no for a reason that holds for all its objects.

    Args: uri of the one that was asked for, reason.
    """

    def __init__(self, uri: str, reason: str) -> None:
        super().__init__(uri, reason)
        self.reason = reason

    def __str__(self) -> str:
        return ": ".join(self.args)


class ObjectChanged(FetchError):
    """Raised when an object is no longer the one that `head` described."""


class NoRanges(FetchError):
    """Raised when a store sends the whole object, whatever range it is asked for."""


class ETagMismatch(ChecksumMismatch):
    """Raised when what was fetched has another MD5 than the ETag. Args: uri, expected, found."""

    def __str__(self) -> str:
        uri, expected, got = self.args
        return (
            f"{uri}: MD5 {got}, expected {expected} by its ETag; the partial file was removed. If "
            "the ETags of this store are no MD5, put a manifest.json with the SHA-256 beside it."
        )


@dataclass(frozen=True, slots=True)
class Retry:
    """Exponential backoff with jitter: waits of about 0.5, 1, 2, … seconds between attempts.

    Attributes:
        attempts: at least.
        lasting_s: so long at least from the first failure to the last attempt.
    """

    attempts: int = 6
    lasting_s: float = 90.0
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
    failures, done, failing_since = 0, progressed(), 0.0
    while True:
        try:
            return call()
        except transport_errors() as error:
            refusal = explain(error, uri, endpoint)
            if refusal is not None:
                # Its traceback would show the header.
                raise refusal from (None if _is_bad_header(error) else error)
            failures = failures + 1 if progressed() == done else 1
            if failures == 1:
                failing_since = time.monotonic()
            done, failing_s = progressed(), time.monotonic() - failing_since
            if failures >= retry.attempts and failing_s >= retry.lasting_s:
                raise FetchError(
                    f"{uri}: gave up after {failures} attempts; the last one failed with "
                    f"{describe(error)}. Check that {endpoint} answers, then run again: "
                    "a download goes on where it stopped."
                ) from error
            wait_s = max(retry.wait_s(failures), _asked_pause_s(error))
            _note(uri, endpoint, describe(error), failing_s, wait_s, retry)
        if halt.wait(wait_s):
            raise Interrupted(f"{uri}: stopped while waiting to try again")


def _note(
    uri: str, endpoint: str, fault: str, failing_s: float, wait_s: float, retry: Retry
) -> None:
    """Say a line about a store that fails: of all threads one now and then, loud when it lasts."""
    level = logging.WARNING if failing_s >= 1 else logging.INFO
    with _notes_lock:
        if time.monotonic() < _notes.get((endpoint, level), 0.0):
            return
        _notes[endpoint, level] = time.monotonic() + NOTE_EVERY_S
    since = f"failing for {failing_s:.0f} of {retry.lasting_s:.0f} s"
    logger.log(level, "%s: %s; %s, trying again in %.1f s", uri, fault, since, wait_s)


def _asked_pause_s(error: Exception) -> float:
    """What the header Retry-After asks for: seconds, or a date."""
    response = getattr(error, "response", None) or {}
    asked = response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("retry-after", "")
    try:
        if asked.isdecimal():
            pause_s = float(asked)
        else:
            pause_s = email.utils.parsedate_to_datetime(asked).timestamp() - time.time()
    except ValueError:
        return 0.0
    return min(max(0.0, pause_s), LONGEST_PAUSE_S)


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
    from botocore.parsers import ResponseParserError

    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
        return StoreRefuses(uri, f"found no credentials for {endpoint}; {CREDENTIALS_HINT}")
    if isinstance(error, boto.ClientError):
        return _explain_answer(error, uri, endpoint)
    if isinstance(error, ResponseParserError):
        return StoreRefuses(
            uri,
            f"what {endpoint} answers is not S3's; correct AWS_ENDPOINT_URL_S3 or "
            "data.endpoint_url",
        )
    if isinstance(error, boto.SSLError) and any(fault in str(error) for fault in _TLS_FAULTS):
        return StoreRefuses(
            uri,
            f"{describe(error)}; correct AWS_ENDPOINT_URL_S3 or data.endpoint_url, or set "
            "AWS_CA_BUNDLE to the certificates that are to be trusted",
        )
    if is_web(uri) and any(fault in str(error) for fault in _TLS_FAULTS):
        return StoreRefuses(uri, f"{describe(error)}; correct the url in data.sources")
    passing = boto.HTTPClientError | boto.ConnectionError | boto.IncompleteReadError
    if _is_bad_header(error) or (
        isinstance(error, boto.BotoCoreError) and not isinstance(error, passing)
    ):
        return StoreRefuses(uri, describe(error))
    return None


def _explain_answer(error: Exception, uri: str, endpoint: str) -> UpsError | None:
    code, status = answer(error)
    if status in (408, 429) or status >= 500 or code in _CODES_THAT_PASS:
        return None
    if status in (412, 416):
        return ObjectChanged(f"{uri}: the object changed while it was read")
    says, words = describe(error), _words(error)
    if is_web(uri):
        hint = (
            "correct the url in data.sources" if status in (404, 410) else "expected a public file"
        )
        return ObjectUnavailable(f"{uri}: {endpoint} answers {says}; {hint}")
    if code in _REMEDIES:
        return StoreRefuses(uri, f"{endpoint} refuses access: {_REMEDIES[code]}")
    if "cap exceeded" in words.lower():
        return StoreRefuses(
            uri,
            f"{endpoint} answers {says}: raise the cap in the store's console, or wait until it "
            "begins anew",
        )
    if code in _ELSEWHERE or status in (301, 307, 308):
        where = _where(error, words)
        return StoreRefuses(uri, f"{endpoint} answers {says}: the bucket is elsewhere; {where}")
    if code == "InvalidObjectState":
        return ObjectUnavailable(f"{uri}: the object is archived ({code}); {RESTORE_HINT}")
    if code == "NoSuchBucket":
        reason = f"no such bucket at {endpoint}; create it, or correct data.bucket"
    elif status == 404:
        reason = f"no such key at {endpoint}; upload it, or correct data.sources"
    elif status in (401, 403):
        reason = f"{endpoint} refuses access ({says}); expected credentials that may read it: "
        reason += CREDENTIALS_HINT
        if code in ("InvalidAccessKeyId", "SignatureDoesNotMatch"):
            return StoreRefuses(uri, reason)
    else:
        reason = f"{endpoint} answers {says}; check the endpoint (AWS_ENDPOINT_URL_S3) and the "
        reason += "region (AWS_DEFAULT_REGION)"
    return ObjectUnavailable(f"{uri}: {reason}")


def _where(error: Exception, words: str) -> str:
    """How to reach a bucket that is in another region."""
    response = getattr(error, "response", None) or {}
    fields, headers = response["Error"], response["ResponseMetadata"].get("HTTPHeaders", {})
    expected = re.search(r"expecting '([\w-]+)'", words)
    region = fields.get("Region") or headers.get("x-amz-bucket-region")
    region = region or (expected[1] if expected else "that of the bucket")
    endpoint = fields.get("Endpoint") or headers.get("location") or "the endpoint of that region"
    endpoint = redacted(endpoint)
    return f"set AWS_DEFAULT_REGION to {region}, and AWS_ENDPOINT_URL_S3, if set, to {endpoint}"


def answer(error: BaseException | None) -> tuple[str, int]:
    """(code, HTTP status) of the store's answer; ("", 0) where there was none."""
    response = getattr(error, "response", None) or {}
    code = str(response.get("Error", {}).get("Code") or "")
    return code, int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def describe(error: Exception) -> str:
    """The error in a few words, those of the store too, without what a request is signed with."""
    code, status = answer(error)
    if _is_bad_header(error):
        return "a request cannot be sent: the credentials hold a character that no header may hold"
    if not status:
        return redacted(f"{type(error).__name__}: {error}")
    if code in ("", str(status)):
        return f"HTTP {status}"
    words = _words(error)
    return f"{code} (HTTP {status})" + (f": {words}" if words else "")


def redacted(text: str) -> str:
    """Without the credentials of this process, and the login in a URL."""
    for value in (os.environ.get(name, "") for name in SECRETS):
        text = text.replace(value, "…") if len(value) >= 8 else text
    return re.sub(r"//[^/\s]*@", "//…@", text)


def _words(error: Exception) -> str:
    """What the store says to people, in one line."""
    response = getattr(error, "response", None) or {}
    words = " ".join(str(response.get("Error", {}).get("Message") or "").split()).rstrip(".")
    return redacted(words if len(words) <= _MOST_WORDS else f"{words[:_MOST_WORDS]}…")


def _is_bad_header(error: Exception) -> bool:
    """Whether a header could not be sent; the error then shows it."""
    cause = getattr(error, "kwargs", {}).get("error")
    return isinstance(cause, UnicodeEncodeError) or "nvalid header" in str(cause)
