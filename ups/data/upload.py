"""Put a file into the store: large ones in parts, on from what an earlier try left there.

The store compares each part with its MD5 as it takes it. What it has of an upload that was cut
short is asked for, and parts that are the file's own are not sent again.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import math
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ups.background import at_once
from ups.data.s3errors import answer, transport_errors
from ups.errors import DataError, UpsError
from ups.files import read_fully
from ups.progress import Progress

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

WHOLE_BYTES = 64 << 20  # a file that is smaller is sent in one piece
PART_BYTES = 32 << 20
MOST_PARTS = 9_000  # S3 takes 10,000
PARTS_AT_ONCE = 4
_HASH_BYTES = 1 << 20

Call = Callable[[str, Callable[[], Any]], Any]
"""Takes a URI and a call to make; tries again what can pass, explains what cannot."""


class Upload:
    """One file on its way to one key; used once."""

    def __init__(
        self,
        client: S3Client,
        call: Call,
        path: Path,
        place: tuple[str, str],
        progress: Progress | None,
    ) -> None:
        self._client: Any = client  # its types know no bodies but files
        self._call, self._path = call, path
        self._place = {"Bucket": place[0], "Key": place[1]}
        self._uri = f"s3://{place[0]}/{place[1]}"
        self._progress = progress
        self._lock, self._sent = threading.Lock(), 0
        self._resumed_bytes = 0

    def run(self, stop: threading.Event | None = None) -> int:
        """Send it; returns the bytes that the store had of it already.

        Raises:
            DataError: the file was changed meanwhile.
            Interrupted: `stop` was set; the parts that are there stay.
            ObjectUnavailable, FetchError: see `retrying`.
        """
        before = self._path.stat()
        self._total = before.st_size
        with self._path.open("rb") as file:
            self._fd = file.fileno()
            if self._total < WHOLE_BYTES:
                self._send_whole()
            else:
                self._send_parts(stop)
        after = self._path.stat()
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise DataError(f"{self._path} was changed while it was uploaded; upload it again")
        return self._resumed_bytes

    def _send_whole(self) -> None:
        part = _Part(self._fd, 0, self._total)
        given = {**self._place, "ContentLength": self._total}
        given["ContentMD5"] = base64.b64encode(part.md5()).decode()
        self._call(self._uri, lambda: self._client.put_object(**given, Body=part.rewound()))
        self._note(self._total)

    def _send_parts(self, stop: threading.Event | None) -> None:
        self._part_bytes = max(PART_BYTES, math.ceil(self._total / MOST_PARTS))
        numbers = list(range(1, -(-self._total // self._part_bytes) + 1))
        upload_id, there = self._unfinished()
        if upload_id is None:
            begun = self._call(
                self._uri, lambda: self._client.create_multipart_upload(**self._place)
            )
            upload_id = begun["UploadId"]
        send = functools.partial(self._send_part, upload_id, there)
        etags = at_once(send, numbers, PARTS_AT_ONCE, stop, "the object store")
        parts: Any = [
            {"PartNumber": n, "ETag": etag} for n, etag in zip(numbers, etags, strict=True)
        ]
        self._call(
            self._uri,
            lambda: self._client.complete_multipart_upload(
                **self._place, UploadId=upload_id, MultipartUpload={"Parts": parts}
            ),
        )

    def _unfinished(self) -> tuple[str | None, dict[int, str]]:
        """The newest upload to this key that was cut short, and the ETags of its parts.

        None where a part is another than the file's: some stores take no other in its place.
        """
        where = self._place
        try:
            found = self._client.list_multipart_uploads(
                Bucket=where["Bucket"], Prefix=where["Key"]
            ).get("Uploads", [])
            own = [upload for upload in found if upload["Key"] == where["Key"]]
            if not own:
                return None, {}
            upload_id = max(own, key=lambda upload: upload["Initiated"])["UploadId"]
            pages = self._client.get_paginator("list_parts").paginate(**where, UploadId=upload_id)
            parts = [part for page in pages for part in page.get("Parts", [])]
        except transport_errors():  # a store that does not tell takes all of it anew
            return None, {}
        for found_part in parts:
            part = self._part(found_part["PartNumber"])
            etag = found_part["ETag"].strip('"')
            if part.num_bytes != found_part["Size"] or part.md5().hex() != etag:
                return None, {}
        return upload_id, {part["PartNumber"]: part["ETag"] for part in parts}

    def _part(self, number: int) -> _Part:
        start = (number - 1) * self._part_bytes
        return _Part(self._fd, start, max(0, min(self._part_bytes, self._total - start)))

    def _send_part(self, upload_id: str, there: Mapping[int, str], number: int) -> str:
        """The ETag of a part that is in the store."""
        part, etag = self._part(number), there.get(number)
        if etag is None:
            given = {**self._place, "UploadId": upload_id, "PartNumber": number}
            given |= {"ContentLength": part.num_bytes}
            given["ContentMD5"] = base64.b64encode(part.md5()).decode()
            sent = self._call(
                self._uri, lambda: self._client.upload_part(**given, Body=part.rewound())
            )
            etag = str(sent["ETag"])
        else:
            with self._lock:
                self._resumed_bytes += part.num_bytes
        self._note(part.num_bytes)
        return etag

    def _note(self, num_bytes: int) -> None:
        with self._lock:
            self._sent += num_bytes
            if self._progress is not None:
                self._progress(self._sent, self._total)


def ensure_bucket(client: S3Client, bucket: str) -> None:
    """Create a bucket where it is missing; raises what boto3 raises."""
    refuses = client.exceptions.ClientError
    try:
        client.head_bucket(Bucket=bucket)
    except refuses as error:
        if answer(error)[1] != 404:
            raise
        region = client.meta.region_name
        where: Any = {"LocationConstraint": region}
        extra = {} if region == "us-east-1" else {"CreateBucketConfiguration": where}
        try:
            client.create_bucket(Bucket=bucket, **extra)
        except refuses as error:
            if not answer(error)[0].startswith("BucketAlready"):  # by another, just now
                raise
            client.head_bucket(Bucket=bucket)


class _Part(io.RawIOBase):
    """Bytes of an open file, as a file of their own; several may be read at once."""

    def __init__(self, fd: int, start: int, num_bytes: int) -> None:
        self._fd, self._start, self.num_bytes = fd, start, num_bytes
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def rewound(self) -> _Part:
        self._position = 0
        return self

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        begin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.num_bytes}
        self._position = begin[whence] + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self.num_bytes - self._position)]
        if missing := read_fully(self._fd, view, self._start + self._position):
            raise UpsError(f"the file became {missing} bytes shorter while it was uploaded")
        self._position += len(view)
        return len(view)

    def md5(self) -> bytes:
        digest, buffer = hashlib.md5(usedforsecurity=False), bytearray(_HASH_BYTES)
        self.rewound()
        while count := self.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
        return digest.digest()
