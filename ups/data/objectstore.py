"""Objects in a bucket of any S3-compatible store: look one up, put one there, read a range of it.

Credentials come from the environment or an AWS profile; SHA-256 digests from the manifest that
stands beside the objects (`manifests`).
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ups.background import Background
from ups.data.answers import (
    Answer,
    Version,
    covered,
    is_archived,
    listed_version,
    md5_of,
    refuse_archived,
    total_bytes,
    version_of,
)
from ups.data.blocks import Blocks, describe_file
from ups.data.connect import NUM_CONNECTIONS, connect
from ups.data.folder import Folder
from ups.data.listing import list_below, list_objects, missing
from ups.data.manifests import Manifests
from ups.data.s3errors import (
    NoRanges,
    ObjectChanged,
    Retry,
    StoreRefuses,
    answer,
    describe,
    retrying,
    transport_errors,
)
from ups.data.upload import Upload, ensure_bucket
from ups.data.web import WebClient, host_of, is_web, uri_of
from ups.errors import FetchError, ObjectUnavailable, UpsError
from ups.progress import Progress

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from mypy_boto3_s3 import S3Client

logger = logging.getLogger(__name__)

# A HEAD has no body, so these may not say what is wrong; or HEAD alone is refused.
_UNEXPLAINED = (301, 307, 400, 401, 403, 405, 501)
_SKIP_BYTES = 1 << 20

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What the store, and the manifest beside the object, say of it."""

    bucket: str
    key: str
    num_bytes: int
    version: Version
    sha256: str | None  # from the manifest
    md5: str | None  # from the ETag
    blocks: Blocks | None = None  # from the manifest

    @property
    def uri(self) -> str:
        return uri_of(self.bucket, self.key)

    @property
    def etag(self) -> str:
        """As stamps and journals hold it, with the time of the last change."""
        return str(self.version)

    @property
    def is_verifiable(self) -> bool:
        """Whether there is a digest to compare the bytes with."""
        return self.sha256 is not None or self.md5 is not None


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
        ConfigError, ObjectUnavailable: see `connect`.
    """

    def __init__(self, endpoint_url: str | None = None, *, retry: Retry | None = None) -> None:
        self.retry = retry or Retry()
        self._client = connect(endpoint_url)
        self._web = WebClient(NUM_CONNECTIONS)
        self.endpoint = self._client.meta.endpoint_url
        self._manifests = Manifests(self._client_of, self._call, self.endpoint_of)
        self._buckets: set[str] = set()  # that are there
        self._refusals: dict[str, StoreRefuses] = {}

    def is_first(self, refusal: StoreRefuses) -> bool:
        """Whether no other with this reason was asked about: of all threads, one tells the user."""
        return self._refusals.setdefault(refusal.reason, refusal) is refusal

    def close(self) -> None:
        self._client.close()
        self._web.close()

    def endpoint_of(self, bucket: str) -> str:
        """Of the store, or the web server, that a bucket or an object's URI is of."""
        return host_of(bucket) if is_web(bucket) else str(self.endpoint)

    def _client_of(self, bucket: str) -> S3Client:
        """Of the store, or what asks web servers in its way."""
        return cast("S3Client", self._web) if is_web(bucket) else self._client

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

        Returns: the object, and its first `num_bytes` bytes, or all where it is smaller or the
            store knows no ranges; the caller closes them. None where the object is empty.
        Raises: as `head`.
        """

        def get() -> Any:
            try:
                return self._client_of(bucket).get_object(
                    Bucket=bucket, Key=key, Range=f"bytes=0-{num_bytes - 1}"
                )
            except self._client.exceptions.ClientError as error:
                if answer(error)[1] != 416:  # an empty object has no first byte
                    raise
                return self._ask_head(bucket, key)

        info, found = self._describe(bucket, key, get, fresh, None)
        if "Body" not in found:
            return info, None
        body = found["Body"]
        try:
            start, end = covered(found, info.num_bytes, info.uri)
        except ConnectionError:
            start, end = 0, 0
        except BaseException:  # whatever it is, and a stop, too: nobody else has the body to close
            body.close()
            raise
        if start == 0 and end in (min(num_bytes, info.num_bytes), info.num_bytes):
            return info, Opened(body, end)
        body.close()
        return info, None

    def bytes_by_head(self, bucket: str, key: str) -> int | None:
        """The size that the answer to a HEAD says; None where it says none."""
        try:
            return (
                self._client_of(bucket).head_object(Bucket=bucket, Key=key).get("ContentLength")
                or None
            )
        except transport_errors():
            return None

    def _describe(
        self, bucket: str, key: str, ask: Callable[[], Any], fresh: bool, retry: Retry | None
    ) -> tuple[ObjectInfo, Any]:
        """The object by the answer to a HEAD or GET, and that answer."""
        # Asked for at the same time: one round trip instead of two.
        manifest = Background(lambda: self._manifests.entry(bucket, key, fresh), "read a manifest")
        try:
            found = self._call(uri_of(bucket, key), ask, retry)
        except ObjectUnavailable as error:
            if answer(error.__cause__)[1] == 404 and not is_web(bucket):
                raise missing(
                    self._client, self._call, bucket, key, self.endpoint
                ) from error.__cause__
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
        uri = uri_of(bucket, key)
        version = version_of(found, uri, self.endpoint_of(bucket))
        refuse_archived(found, uri)
        num_bytes = total_bytes(found)
        if num_bytes is None and "Body" in found:
            num_bytes = total_bytes(self._call(uri, lambda: self._ask_head(bucket, key)))
        if num_bytes is None and entry:
            num_bytes = entry["bytes"]
        if num_bytes is None:
            raise FetchError(
                f"{uri}: {self.endpoint_of(bucket)} tells its size neither by Content-Length nor "
                "by Content-Range; put a manifest.json with its size and SHA-256 beside it"
            )
        if entry and entry["bytes"] != num_bytes and not fresh:
            entry = self._manifests.entry(bucket, key, fresh=True)
        if entry and entry["bytes"] != num_bytes:
            raise FetchError(
                f"{uri}: {num_bytes} bytes, but its manifest says {entry['bytes']}. "
                "If it is being uploaded, try again later; else upload it anew"
            )
        sha256, blocks = (entry["sha256"], entry["blocks"]) if entry else (None, None)
        return ObjectInfo(bucket, key, num_bytes, version, sha256, md5_of(found, bucket), blocks)

    def noted(self, bucket: str, key: str) -> dict[str, Any] | None:
        """What the manifest alone says of an object, see `Manifests.entry`; it is not asked for."""
        return self._manifests.entry(bucket, key)

    def folder(self, bucket: str, prefix: str, retry: Retry) -> Folder:
        """What lies below a prefix that ends in a slash, read and written without a manifest."""
        return Folder(self._client, functools.partial(self._call, retry=retry), bucket, prefix)

    def listed(self, bucket: str, keys: Collection[str]) -> list[ObjectInfo]:
        """What `head` says of objects of one folder, as far as one listing tells; see `look_up`.

        Of an archived object, of one whose SHA-256 is in no manifest, and of one that the manifest
        says another size of, it does not tell; nor of any where the store lists none.
        """
        if is_web(bucket):  # which list nothing
            return []
        faults: tuple[type[Exception], ...] = (UpsError, *transport_errors())
        try:
            entries = list_objects(self._client, bucket, keys)
            known = {key: self._manifests.entry(bucket, key) for key in entries}
        except faults as error:  # a HEAD of each says what is wrong
            why = describe(error)
            logger.info("s3://%s: each of %d objects is asked about: %s", bucket, len(keys), why)
            return []
        found = []
        for key, entry in entries.items():
            version, noted = listed_version(entry), known[key]
            if noted and noted["bytes"] == entry["Size"] and version and not is_archived(entry):
                sha256, blocks = noted["sha256"], noted["blocks"]
                found.append(ObjectInfo(bucket, key, entry["Size"], version, sha256, None, blocks))
        return found

    def below(self, bucket: str, prefix: str) -> dict[str, int]:
        """The keys that begin so, and their sizes; raises as `head`."""
        uri = f"s3://{bucket}/{prefix}"
        return self._call(uri, lambda: list_below(self._client, bucket, prefix))

    def exists(self, bucket: str, key: str) -> bool:
        """Whether the object is there; a missing bucket is a no.

        Raises:
            ObjectUnavailable: forbidden or no credentials.
            FetchError: the store cannot be reached.
        """
        uri = uri_of(bucket, key)
        try:
            self._call(uri, lambda: self._ask_head(bucket, key))
        except ObjectUnavailable as error:
            if answer(error.__cause__)[1] == 404:
                return False
            raise
        return True

    def open_range(self, info: ObjectInfo, start: int, end: int) -> StreamingBody:
        """The bytes [start, end) of the very object that `info` describes; the caller closes it.

        The answer's own ETag is compared: some stores ignore If-Match, and a proxy that changes
        ETags has it refused.

        Raises:
            NoRanges: the store sends the whole object; only its end is then read from `start` on.
        """
        found = self._client_of(info.bucket).get_object(
            Bucket=info.bucket, Key=info.key, Range=f"bytes={start}-{end - 1}"
        )
        body = found["Body"]
        try:
            self._skip_to(info, found, start, end)
        except BaseException:  # whatever it is, and a stop, too: nobody else has the body to close
            body.close()
            raise
        return body

    def _skip_to(self, info: ObjectInfo, found: Answer, start: int, end: int) -> None:
        """Check that the body is the range that was asked for, or have it begin there."""
        if not version_of(found, info.uri, self.endpoint_of(info.bucket)).is_of(info.version):
            raise ObjectChanged(f"{info.uri}: the object changed while it was read")
        total = total_bytes(found)
        if total not in (None, info.num_bytes):
            raise ObjectChanged(
                f"{info.uri}: {total} bytes by the answer to a range, {info.num_bytes} before"
            )
        offered = covered(found, info.num_bytes, info.uri)
        if offered == (start, end):
            return
        if offered != (0, info.num_bytes):
            raise ConnectionError(
                f"asked for bytes {start}-{end - 1}, was offered {offered[0]}-{offered[1] - 1}"
            )
        if end != info.num_bytes:
            raise NoRanges(f"{info.uri}: {self.endpoint_of(info.bucket)} knows no ranges")
        while start:
            skipped = len(found["Body"].read(min(start, _SKIP_BYTES)))
            if not skipped:
                raise ConnectionError(f"the body ended {start} bytes before the range")
            start -= skipped

    def upload(
        self, path: Path, bucket: str, key: str, progress: Progress | None = None
    ) -> ObjectInfo:
        """Put a file there and its digests into the manifest; the bucket is created if missing.

        Raises: see `send`.
        """
        entry = describe_file(path)
        self.send(path, bucket, key, progress)
        self.record(bucket, {key: entry})
        return self.head(bucket, key)

    def send(
        self,
        path: Path,
        bucket: str,
        key: str,
        progress: Progress | None = None,
        stop: threading.Event | None = None,
    ) -> int:
        """Put a file there, and into no manifest; returns the bytes that were there already.

        Raises:
            ObjectUnavailable: forbidden, or no credentials.
            FetchError: the store failed too often.
            DataError: the file was changed meanwhile. Interrupted: `stop` was set.
        """
        self._call(f"s3://{bucket}/{key}", lambda: self._ensure_bucket(bucket))
        return Upload(self._client, self._call, path, (bucket, key), progress).run(stop)

    def record(self, bucket: str, entries: Mapping[str, dict[str, Any]]) -> None:
        """Set what the manifests say about objects, by their keys.

        Whoever else uploads there at once, in other processes too, keeps what he has recorded.
        """
        self._manifests.record(bucket, entries)

    def _ask_head(self, bucket: str, key: str) -> Any:
        try:
            found = self._client_of(bucket).head_object(Bucket=bucket, Key=key)
            if "ContentLength" in found:
                return found
        except self._client.exceptions.ClientError as error:
            if answer(error)[1] not in _UNEXPLAINED:
                raise
        # The answer to a GET says why it is refused, if it is, and the size.
        first = self._client_of(bucket).get_object(Bucket=bucket, Key=key, Range="bytes=0-0")
        first["Body"].close()
        return {name: value for name, value in first.items() if name != "Body"}

    def _call(self, uri: str, call: Callable[[], T], retry: Retry | None = None) -> T:
        endpoint = self.endpoint_of(uri)
        return retrying(call, uri=uri, endpoint=endpoint, retry=retry or self.retry)

    def _ensure_bucket(self, bucket: str) -> None:
        if bucket not in self._buckets:
            ensure_bucket(self._client, bucket)
            self._buckets.add(bucket)
