"""What the answer to a HEAD or GET says about an object: its version, its size, which bytes.

S3 leaves much open, and proxies change more: a weak or missing ETag, no Content-Length, a
Content-Range without the total, the whole object in place of a range. And its body is received.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from typing import Any

from ups.data.s3errors import RESTORE_HINT, StoreRefuses
from ups.data.web import is_web
from ups.errors import FetchError, ObjectUnavailable

Answer = Mapping[str, Any]
"""What boto3 returns."""

_MODIFIED = "modified "  # begins the version of an object without an ETag
_ARCHIVES = ("GLACIER", "DEEP_ARCHIVE", "ARCHIVE_ACCESS", "DEEP_ARCHIVE_ACCESS")


@dataclass(frozen=True, slots=True)
class Version:
    """Which content of an object it is; one of the two may be missing.

    Attributes:
        etag: in its quotes, without what a proxy that compresses makes of it (`W/`, `-gzip`).
        modified: the time of the last change, to the second.
    """

    etag: str
    modified: str

    def __str__(self) -> str:
        return f"{self.etag} {self.modified}".strip()

    def is_of(self, other: Version) -> bool:
        """Whether both are the same content, by what both have."""
        if self.etag and other.etag:
            return self.etag == other.etag
        return bool(self.modified) and self.modified == other.modified

    def is_noted(self, text: str) -> bool:
        """Whether the text, of a stamp or a journal, is of this version."""
        etag, modified, time = text.partition(_MODIFIED)
        return self.is_of(Version(_strong(etag.strip()), modified + time))


def version_of(answer: Answer, uri: str, endpoint: str) -> Version:
    """The version that an answer is about.

    Raises:
        StoreRefuses: it is the answer of a web page, not of a store.
    """
    headers = answer["ResponseMetadata"]["HTTPHeaders"]
    content_type = str(headers.get("content-type", ""))
    modified = answer.get("LastModified")
    version = Version(
        _strong(answer.get("ETag") or ""), f"{_MODIFIED}{modified.isoformat()}" if modified else ""
    )
    is_page = content_type.startswith("text/html") and "x-amz-request-id" not in headers
    if not is_page and str(version):
        return version
    found = f"with a web page ({content_type})" if is_page else "without ETag and Last-Modified"
    if is_web(uri):
        raise ObjectUnavailable(
            f"{uri} answers {found}, expected a file; correct the url in data.sources: take that "
            "of the download, not that of the page about it"
        )
    raise StoreRefuses(
        uri,
        f"{endpoint} answers {found}: that is no S3 endpoint, or a login page stands before it; "
        "correct AWS_ENDPOINT_URL_S3 or data.endpoint_url",
    )


def listed_version(entry: Answer) -> Version | None:
    """The version that an entry of a listing is about, to the second as a HEAD tells it."""
    noted = ""
    if modified := entry.get("LastModified"):
        noted = f"{_MODIFIED}{modified.astimezone(UTC).replace(microsecond=0).isoformat()}"
    version = Version(_strong(entry.get("ETag") or ""), noted)
    return version if str(version) else None


def md5_of(answer: Answer, bucket: str) -> str | None:
    """The MD5 of the object, where its ETag is one."""
    found = re.fullmatch('"([0-9a-fA-F]{32})"', _strong(answer.get("ETag") or ""))
    is_other = (  # AWS: of objects that are encrypted so, and in directory buckets, it is not
        answer.get("ServerSideEncryption", "AES256") != "AES256"
        or "SSECustomerAlgorithm" in answer
        or bucket.endswith("--x-s3")
    )
    return found[1].lower() if found and not is_other else None


def total_bytes(answer: Answer) -> int | None:
    """The size of the object; None where the answer does not tell it."""
    is_part = answer["ResponseMetadata"]["HTTPStatusCode"] == 206
    if is_part or "ContentRange" in answer:  # rclone sends it with status 200
        _, _, total = answer.get("ContentRange", "").rpartition("/")  # "bytes 0-99/1234"
        return int(total) if total.isdecimal() else None
    length: int | None = answer.get("ContentLength")
    return length


def covered(answer: Answer, num_bytes: int, uri: str) -> tuple[int, int]:
    """The bytes [start, end) in the body, of an object of so many.

    Raises:
        FetchError: something on the way has changed the bytes.
        ConnectionError: the answer contradicts itself.
    """
    start, end = 0, num_bytes
    if found := re.match(r"bytes (\d+)-(\d+)/", answer.get("ContentRange", "")):
        start, end = int(found[1]), int(found[2]) + 1
    length, encoding = answer.get("ContentLength", end - start), answer.get("ContentEncoding")
    if length != end - start and encoding:
        raise FetchError(
            f"{uri}: {end - start} bytes in Content-Encoding {encoding} are offered as {length}: "
            "something between here and the store compresses; switch that off"
        )
    if length != end - start:
        raise ConnectionError(f"{length} bytes in an answer about bytes {start}-{end - 1}")
    return start, end


def refuse_archived(answer: Answer, uri: str) -> None:
    """Refuse an object that cannot be read before it is restored.

    Raises:
        ObjectUnavailable: it is archived.
    """
    archive = answer.get("ArchiveStatus") or answer.get("StorageClass")
    if is_archived(answer):
        raise ObjectUnavailable(f"{uri}: the object is archived ({archive}); {RESTORE_HINT}")


def receive(body: Any, buffer: memoryview) -> int:
    """Fill a buffer from a body, which boto3 and urllib3 would receive into new memory each time.

    Returns: how many bytes came; less than fit, and 0 in the end, where the body ends.
    """
    response = body._raw_stream  # urllib3's, and in it http.client's, which receives
    source = response._fp
    num: int = source.readinto(buffer)
    if source.isclosed() and not source.length:  # all of it came: the connection is free again
        response.release_conn()
    return num


def is_archived(answer: Answer) -> bool:
    """Whether an object has to be restored before it is read; a listing never says it was."""
    archive = answer.get("ArchiveStatus") or answer.get("StorageClass")
    return archive in _ARCHIVES and 'ongoing-request="false"' not in answer.get("Restore", "")


def _strong(etag: str) -> str:
    tag = etag.removeprefix("W/").strip('"').removesuffix("-gzip")
    return f'"{tag}"' if tag else ""
