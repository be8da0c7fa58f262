"""Stamps: what was verified about a file, kept beside it, so that a `stat` replaces a hash.

A stamp `.{name}.stamp` holds the size, the times of the last change of content and of inode, and
the inode that the file had when its SHA-256 was known, and a check of itself. Nothing is forced to
disk, because that takes as long as writing the file: a stamp from before a reboot therefore only
says what digest to expect, and the file is hashed again. So it is where the inode has changed since
(what sets the time of the content back does that), and with a stamp that lacks its time.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ups.errors import Interrupted
from ups.files import write_atomically

logger = logging.getLogger(__name__)

_HASH_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Stamp:
    """What is known of a file.

    Attributes:
        fetch: names the fetch that brought its bytes, see `RangedFetch.token`; "" where unknown.
    """

    num_bytes: int
    mtime_ns: int
    inode: int
    sha256: str
    etag: str
    boot_id: str
    ctime_ns: int | None = None  # None: written before it was noted
    fetch: str = ""

    def spares_hashing(self, path: Path) -> bool:
        """Whether the file must still have this digest; else it has to be hashed."""
        return self.boot_id == boot_id() and self.ctime_ns == path.stat().st_ctime_ns


def beside(dest: Path, suffix: str) -> Path:
    """The hidden file that goes with `dest`: `.{name}.{suffix}` in the same folder."""
    return dest.with_name(f".{dest.name}.{suffix}")


def read_stamp(dest: Path) -> Stamp | None:
    """The stamp of `dest`; None where there is none, it is damaged, or the file changed since."""
    try:
        fields = json.loads(beside(dest, "stamp").read_text())
        if "ctime_ns" in fields and fields.pop("check") != _check(fields):
            raise ValueError("the stamp is damaged")
        stamp, stat = Stamp(**fields), dest.stat()
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None
    same = (stamp.num_bytes, stamp.mtime_ns, stamp.inode) == _key(stat)
    return stamp if same else None


def write_stamp(dest: Path, stat: os.stat_result, sha256: str, etag: str, fetch: str = "") -> None:
    """Record that the file had this digest when `stat` was taken (before hashing it)."""
    size, mtime_ns, inode = _key(stat)
    stamp = Stamp(size, mtime_ns, inode, sha256, etag, boot_id(), stat.st_ctime_ns, fetch)
    save_stamp(dest, stamp)


def save_stamp(dest: Path, stamp: Stamp) -> None:
    """Put it beside the file."""
    fields = asdict(stamp)
    text = json.dumps({**fields, "check": _check(fields)})
    write_atomically(beside(dest, "stamp"), text.encode(), durable=False)


def hash_file(path: Path, stop: threading.Event | None = None) -> str:
    """SHA-256 of a file.

    Raises:
        Interrupted: `stop` was set.
    """
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
            if stop is not None and stop.is_set():
                raise Interrupted(f"{path}: stopped while it was hashed")
    return digest.hexdigest()


@functools.cache
def boot_id() -> str:
    """Changes when the machine starts anew; "" where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _key(stat: os.stat_result) -> tuple[int, int, int]:
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _check(fields: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]
