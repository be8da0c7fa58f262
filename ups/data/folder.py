"""Objects below one prefix of a bucket, read and written as they are, without a manifest."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ups.data.answers import covered, receive, total_bytes
from ups.data.s3errors import ObjectChanged, answer
from ups.data.upload import Upload
from ups.errors import ObjectUnavailable
from ups.progress import Progress

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

TAKEN = (409, 412)  # another has put it there
UNKNOWN = (400, 501)  # what a store answers that knows no conditions


class Listed(NamedTuple):
    """An object as a listing shows it."""

    num_bytes: int
    changed_at: datetime


class Folder:
    """What lies below a prefix. Safe to share between threads.

    Args:
        call: takes a URI and a call to make; tries again what can pass, explains what cannot.
        prefix: ends in a slash, or is empty.
    Raises:
        ObjectUnavailable, FetchError: of every method, see `retrying`.
    """

    def __init__(
        self,
        client: S3Client,
        call: Callable[[str, Callable[[], Any]], Any],
        bucket: str,
        prefix: str,
    ) -> None:
        self._client, self._call, self._bucket, self._prefix = client, call, bucket, prefix

    def uri(self, name: str = "") -> str:
        return f"s3://{self._bucket}/{self._prefix}{name}"

    def _place(self, name: str) -> dict[str, Any]:
        return {"Bucket": self._bucket, "Key": f"{self._prefix}{name}"}

    def get(self, name: str) -> bytes | None:
        """A small object; None where there is none."""

        def ask() -> bytes:
            body = self._client.get_object(**self._place(name))["Body"]
            try:
                return body.read()
            finally:
                body.close()

        try:
            found: bytes = self._call(self.uri(name), ask)
        except ObjectUnavailable as error:
            code, status = answer(error.__cause__)
            if status != 404 or code == "NoSuchBucket":
                raise
            return None
        return found

    def read(self, name: str, start: int, buffer: memoryview) -> None:
        """Fill the buffer with an object's bytes from `start` on.

        Raises:
            ObjectChanged: it is shorter.
        """
        end = start + len(buffer)

        def ask() -> None:
            given = {**self._place(name), "Range": f"bytes={start}-{end - 1}"}
            found = self._client.get_object(**given)
            body, left = found["Body"], buffer
            try:
                if (total := total_bytes(found)) is not None and total < end:
                    raise ObjectChanged(f"{self.uri(name)}: {total} bytes, expected {end} at least")
                if covered(found, total or end, self.uri(name)) != (start, end):
                    raise ConnectionError(f"asked for bytes {start}-{end - 1}, was offered others")
                while left and (num := receive(body, left)):
                    left = left[num:]
                if left:
                    raise ConnectionError(f"the body ended {len(left)} bytes early")
            finally:
                body.close()

        self._call(self.uri(name), ask)

    def put(self, name: str, content: bytes, *, if_absent: bool = False) -> bool:
        """Write a small object; False where `if_absent` found another one.

        A store that knows no conditions replaces the other one.
        """
        refuses = self._client.exceptions.ClientError

        def ask() -> bool:
            given = {**self._place(name), "Body": content}
            if not if_absent:
                self._client.put_object(**given)
                return True
            try:
                self._client.put_object(**given, IfNoneMatch="*")
            except refuses as error:
                if answer(error)[1] in TAKEN:
                    return False
                if answer(error)[1] not in UNKNOWN:
                    raise
                self._client.put_object(**given)
            return True

        is_put: bool = self._call(self.uri(name), ask)
        return is_put

    def send(
        self, path: Path, name: str, progress: Progress | None, stop: threading.Event | None
    ) -> int:
        """Write a file; returns the bytes that were there, of an upload that was cut short.

        Raises:
            DataError: the file was changed meanwhile. Interrupted: `stop` was set.
        """
        place = self._bucket, f"{self._prefix}{name}"
        return Upload(self._client, self._call, path, place, progress).run(stop)

    def listed(self, below: str = "") -> dict[str, Listed]:
        """All objects whose names begin so, by their names."""

        def ask() -> dict[str, Listed]:
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=f"{self._prefix}{below}"
            )
            entries = (entry for page in pages for entry in page.get("Contents", ()))
            return {
                entry["Key"].removeprefix(self._prefix): Listed(
                    entry["Size"], entry["LastModified"]
                )
                for entry in entries
            }

        found: dict[str, Listed] = self._call(self.uri(below), ask)
        return found

    def remove(self, names: Sequence[str]) -> None:
        """Delete objects, in this order; what is gone already is no fault."""
        for name in names:
            gone = functools.partial(self._client.delete_object, **self._place(name))
            self._call(self.uri(name), gone)
