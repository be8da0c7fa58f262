"""Which bytes of an object are in its partial file: what a killed download goes on from.

A line tells of bytes that have arrived, that were let go since, or that have to come again.
"""

from __future__ import annotations

import json
import os
import secrets
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ups.data.cuts import Interval, joined, stretches, without
from ups.data.objectstore import ObjectInfo
from ups.data.stamps import boot_id
from ups.files import write_atomically

GONE = "-"  # begins the line of bytes that were let go
AGAIN = "+"  # of such bytes that have to come again


class FetchJournal:
    """The journal of one download: a line of JSON, and a `line` for whatever has arrived.

    Attributes:
        token: names the bytes that have arrived; an earlier download's, once its journal is read.
        gone: start → length of what has arrived, and was let go.
        lets_go: whether anything is let go.
    """

    def __init__(self, path: Path, info: ObjectInfo) -> None:
        self._path, self._info = path, info
        self.token = secrets.token_hex(8)
        self.gone: dict[int, int] = {}
        self.lets_go = False

    def read(self, partial: Path) -> list[Interval]:
        """What is there of an interrupted download of the same object, in the order of the file.

        What the journal names may not have reached the disk before a reboot, so it is then used
        only if there is a SHA-256 to tell, and nothing was let go: the line of that may be lost,
        and the hole be there.

        Args:
            partial: the file that it has written.
        """
        total = self._info.num_bytes
        try:
            first, *rest = self._path.read_text().splitlines()
            head = json.loads(first)
            range_bytes = int(head.pop("range_bytes", 1))  # before, a line named a range of these
            let_go = bool(head.pop("lets_go", False))
            whole = partial.stat().st_size == total
            arrived, gone = _read_lines(rest)
            is_same = self._info.version.is_noted(head["etag"])
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            return []
        head.setdefault("token", self.token)
        expected = self.head() | {"etag": head["etag"], "token": head["token"]}
        if self._info.sha256 is not None and not let_go:
            expected["boot_id"] = head.get("boot_id")
        if not (whole and is_same) or head != expected or range_bytes < 1:
            return []
        if head["boot_id"] == boot_id():  # else bytes may be others than those that were read
            self.token = head["token"]
        self.gone = gone
        found = sorted((at * range_bytes, at * range_bytes + n) for at, n in arrived.items())
        there = joined((start, min(end, total)) for start, end in found)
        return without(there, stretches(gone))

    def write(self, arrived: Iterable[tuple[int, int]]) -> None:
        """Begin it anew.

        Args:
            arrived: (start, number) of bytes that are there.
        """
        head = f"{json.dumps(self.head())}\n".encode()
        body = b"".join(line(*each) for each in arrived)
        body += b"".join(line(*each, GONE) for each in sorted(self.gone.items()))
        write_atomically(self._path, head + body, durable=False)

    def open(self) -> int:
        """A file descriptor that lines are added to; whoever calls closes it."""
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)

    def head(self) -> dict[str, Any]:
        """What its first line says: of which object it is, and when it was written."""
        return {
            "etag": self._info.etag,
            "num_bytes": self._info.num_bytes,
            "boot_id": boot_id(),
            "token": self.token,
            **({"lets_go": True} if self.lets_go else {}),
        }


def line(start: int, length: int, what: str = "") -> bytes:
    """That `length` bytes from `start` on have arrived, or `what` became of them; and a check."""
    text = f"{what}{start} {length}"
    return f"{text} {zlib.crc32(text.encode()):08x}\n".encode()


def _read_lines(lines: Iterable[str]) -> tuple[dict[int, int], dict[int, int]]:
    """Start → length of what has arrived, and of what was let go of that.

    A line that is cut short or damaged says nothing. Lines written before have no check.
    """
    arrived: dict[int, int] = {}
    gone: dict[int, int] = {}
    for text in lines:
        start, length, *check = text.removeprefix(GONE).removeprefix(AGAIN).split(" ")
        if check not in ([], [f"{zlib.crc32(text.rpartition(' ')[0].encode()):08x}"]):
            continue
        at, num = int(start), int(length)
        if text.startswith(AGAIN):
            for found in (arrived, gone):
                for each in [each for each in found if at <= each < at + num]:
                    del found[each]
        else:
            (gone if text.startswith(GONE) else arrived)[at] = num
    return arrived, gone
