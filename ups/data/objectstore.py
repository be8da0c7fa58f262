"""Objects in a bucket of any S3-compatible store: look one up, put one there, read a range of it.

Credentials come from the environment or an AWS profile; SHA-256 digests from the manifest that
stands beside the objects (`manifests`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ups.background import Background
from ups.data.manifests import Manifests
from ups.data.s3errors import (
    CREDENTIALS_HINT,
    ObjectChanged,
    Retry,
    answer,
    describe,
    retrying,
    transport_errors,
)
from ups.data.stamps import hash_file
from ups.errors import ConfigError, FetchError, ObjectUnavailable
from ups.progress import Progress

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from mypy_boto3_s3 import S3Client

NUM_CONNECTIONS = 32  # kept open; at least the threads that share a store
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What the store, and the manifest beside the object, say of it."""

    bucket: str
    key: str
    num_bytes: int
    etag: str  # as sent, with its quotes; the time of the last change where the store has none
    sha256: str | None  # from the manifest

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


@dataclass(frozen=True, slots=True)
class Opened:
    """The first bytes of an object, on their way."""

    body: StreamingBody
    num_bytes: int


class ObjectStore:
    """Safe to share between threads.

    Args:
        endpoint_url: default: what boto3 finds (AWS_ENDPOINT_URL_S3, the profile, AWS).
        retry: how often, and how long apart, failures that can pass are tried again.
    Raises:
        ConfigError: the endpoint is no URL.
        ObjectUnavailable: the AWS profile does not exist.
    """

    def __init__(self, endpoint_url: str | None = None, *, retry: Retry | None = None) -> None:
        self.retry = retry or Retry()
        self._client, self._another_client = _connect(endpoint_url)
        self.endpoint = self._client.meta.endpoint_url
        self._manifests = Manifests(self._client, self._call)

    def close(self) -> None:
        self._client.close()

    def head(
        self, bucket: str, key: str, *, fresh: bool = False, retry: Retry | None = None
    ) -> ObjectInfo:
        """What the store and the manifest say about the object.

        Args:
            fresh: read the manifest again; else it is read once per prefix.
        Raises:
            ObjectUnavailable: no such bucket or key, forbidden, or no credentials.
            FetchError: the store cannot be reached, or object and manifest differ in size.
            DataError: the manifest is not one.
        """
        return self._describe(bucket, key, lambda: self._ask_head(bucket, key), fresh, retry)[0]

    def open_first(
        self, bucket: str, key: str, num_bytes: int, *, fresh: bool = False
    ) -> tuple[ObjectInfo, Opened | None]:
        """What `head` says, by asking at once for the first bytes: one round trip less.

        Returns: the object, and its first `num_bytes` bytes, or all where it is smaller; the caller
            closes them. None where the object is empty, or the store knows no ranges.
        Raises: as `head`.
        """

        def get() -> Any:
            try:
                return self._client.get_object(
                    Bucket=bucket, Key=key, Range=f"bytes=0-{num_bytes - 1}"
                )
            except self._client.exceptions.ClientError as error:
                if answer(error)[1] != 416:  # an empty object has no first byte
                    raise
                return self._ask_head(bucket, key)

        info, found = self._describe(bucket, key, get, fresh, None)
        if "Body" not in found:
            return info, None
        opened = Opened(found["Body"], found["ContentLength"])
        if opened.num_bytes != min(num_bytes, info.num_bytes):
            opened.body.close()
            return info, None
        return info, opened

    def _describe(
        self, bucket: str, key: str, ask: Callable[[], Any], fresh: bool, retry: Retry | None
    ) -> tuple[ObjectInfo, Any]:
        """The object by the answer to a HEAD or GET, and that answer."""
        # Asked for at the same time: one round trip instead of two.
        manifest = Background(lambda: self._manifests.entry(bucket, key, fresh), "read a manifest")
        try:
            found = self._call(f"s3://{bucket}/{key}", ask, retry)
        except ObjectUnavailable as error:
            if answer(error.__cause__)[1] == 404:
                raise self._missing(bucket, key) from error.__cause__
            raise
        try:
            return self._compared(bucket, key, found, manifest.result(), fresh), found
        except BaseException:  # Ctrl-C as well: a connection that is left open is not given back
            if "Body" in found:
                found["Body"].close()
            raise

    def _compared(
        self, bucket: str, key: str, found: Any, entry: dict[str, Any] | None, fresh: bool
    ) -> ObjectInfo:
        _, _, total = found.get("ContentRange", "").rpartition("/")  # "bytes 0-99/1234"
        num_bytes = int(total) if total else found["ContentLength"]
        if entry and entry["bytes"] != num_bytes and not fresh:
            entry = self._manifests.entry(bucket, key, fresh=True)
        if entry and entry["bytes"] != num_bytes:
            raise FetchError(
                f"s3://{bucket}/{key}: {num_bytes} bytes, but its manifest says {entry['bytes']}. "
                "If it is being uploaded, try again later; else upload it anew"
            )
        sha256 = entry["sha256"] if entry else None
        return ObjectInfo(bucket, key, num_bytes, _identity(found), sha256)

    def exists(self, bucket: str, key: str) -> bool:
        """Whether the object is there; a missing bucket is a no.

        Raises:
            ObjectUnavailable: forbidden or no credentials.
            FetchError: the store cannot be reached.
        """
        uri = f"s3://{bucket}/{key}"
        try:
            self._call(uri, lambda: self._ask_head(bucket, key))
        except ObjectUnavailable as error:
            if answer(error.__cause__)[1] == 404:
                return False
            raise
        return True

    def open_range(self, info: ObjectInfo, start: int, end: int) -> StreamingBody:
        """The bytes [start, end) of the very object that `info` describes; the caller closes it.

        Some stores ignore If-Match, so the answer's own ETag is compared as well.
        """
        condition: dict[str, Any] = {"IfMatch": info.etag} if info.etag.startswith('"') else {}
        found = self._client.get_object(
            Bucket=info.bucket, Key=info.key, Range=f"bytes={start}-{end - 1}", **condition
        )
        body = found["Body"]
        if _identity(found) != info.etag:
            body.close()
            raise ObjectChanged(f"{info.uri}: the object changed while it was read")
        if found["ContentLength"] != end - start:
            body.close()
            raise ConnectionError(
                f"asked for bytes {start}-{end - 1}, was offered {found['ContentLength']} bytes"
            )
        return body

    def upload(
        self, path: Path, bucket: str, key: str, progress: Progress | None = None
    ) -> ObjectInfo:
        """Put a file there and its SHA-256 into the manifest; the bucket is created if missing.

        Threads of one process may upload into one prefix at once, two processes may not: the
        manifest is read, changed and written back.

        Raises:
            ObjectUnavailable: forbidden, or no credentials.
            FetchError: the store failed too often.
        """
        from boto3.s3.transfer import ProgressCallbackInvoker
        from s3transfer.manager import TransferConfig, TransferManager

        uri, num_bytes = f"s3://{bucket}/{key}", path.stat().st_size
        sha256 = hash_file(path)
        self._call(uri, lambda: self._ensure_bucket(bucket))
        in_parts = TransferConfig(multipart_threshold=64 << 20, multipart_chunksize=32 << 20)
        # With retries of its own, so that a failed part is sent again, not the whole file.
        client = self._another_client(self.retry.attempts)

        sent, lock = 0, threading.Lock()

        def report(count: int) -> None:
            nonlocal sent
            with lock:
                sent += count
                if progress is not None:
                    progress(sent, num_bytes)

        def put() -> None:
            with TransferManager(client, in_parts) as manager:
                reports = [ProgressCallbackInvoker(report)]
                manager.upload(str(path), bucket, key, subscribers=reports).result()

        try:
            self._call(uri, put, replace(self.retry, attempts=1))
        finally:
            client.close()
        self._manifests.record(bucket, key, {"sha256": sha256, "bytes": num_bytes})
        return self.head(bucket, key)

    def _ask_head(self, bucket: str, key: str) -> Any:
        return self._client.head_object(Bucket=bucket, Key=key)

    def _call(self, uri: str, call: Callable[[], T], retry: Retry | None = None) -> T:
        return retrying(call, uri=uri, endpoint=self.endpoint, retry=retry or self.retry)

    def _ensure_bucket(self, bucket: str) -> None:
        try:
            self._client.head_bucket(Bucket=bucket)
        except self._client.exceptions.ClientError as error:
            if answer(error)[1] != 404:
                raise
            region = self._client.meta.region_name
            where: Any = {"LocationConstraint": region}
            extra = {} if region == "us-east-1" else {"CreateBucketConfiguration": where}
            self._client.create_bucket(Bucket=bucket, **extra)

    def _missing(self, bucket: str, key: str) -> ObjectUnavailable:
        """A 404 of `head` does not say whether the bucket or the key is missing; a listing does."""
        uri, prefix = f"s3://{bucket}/{key}", key[: key.rfind("/") + 1]
        try:
            listing = self._call(
                uri, lambda: self._client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=5)
            )
        except ObjectUnavailable as error:
            if answer(error.__cause__)[0] == "NoSuchBucket":
                return error
            found = "a bucket that may not be listed"
        else:
            found = ", ".join(entry["Key"] for entry in listing.get("Contents", [])) or "nothing"
        return ObjectUnavailable(
            f"{uri}: no such key at {self.endpoint}; found {found}. "
            "Upload it, or correct data.sources"
        )


def _connect(endpoint_url: str | None) -> tuple[S3Client, Callable[[int], S3Client]]:
    """A client that does not retry by itself, and what makes others that do, with n attempts."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import ProfileNotFound

    custom = endpoint_url or any(
        os.environ.get(name) for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    )
    config = Config(
        connect_timeout=10,
        read_timeout=60,  # a store may hash a large object before its first answer
        max_pool_connections=NUM_CONNECTIONS,
        request_checksum_calculation="when_required",  # B2 and others know no CRC headers
        response_checksum_validation="when_required",
        s3={"addressing_style": "path" if custom else "auto"},
    )
    try:
        session = boto3.session.Session()
        region = session.region_name or "us-east-1"

        def client(attempts: int) -> S3Client:
            retries = Config(retries={"mode": "standard", "total_max_attempts": attempts})
            return session.client(
                "s3", region_name=region, endpoint_url=endpoint_url, config=config.merge(retries)
            )

        return client(1), client
    except ProfileNotFound as error:
        raise ObjectUnavailable(f"{error}; {CREDENTIALS_HINT}") from error
    except ValueError as error:
        raise ConfigError(
            f"data.endpoint_url (or AWS_ENDPOINT_URL_S3): {error}; expected http(s)://host[:port]"
        ) from error
    except transport_errors() as error:
        raise ObjectUnavailable(f"no client for the object store: {describe(error)}") from error


def _identity(response: Mapping[str, Any]) -> str:
    return response.get("ETag") or f"modified {response['LastModified'].isoformat()}"
