"""Stamps: what was verified about a file, kept beside it, so that a `stat` replaces a hash.

A stamp `.{name}.stamp` holds the size, modification time and inode that the file had when its
SHA-256 was known. Nothing is forced to disk, because that takes as long as writing the file: a
stamp from before a reboot therefore only says what digest to expect, and the file is hashed again.
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

from ups.errors import Interrupted
from ups.files import write_atomically

logger = logging.getLogger(__name__)

_HASH_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Stamp:
    num_bytes: int
    mtime_ns: int
    inode: int
    sha256: str
    etag: str
    boot_id: str

    @property
    def from_this_boot(self) -> bool:
        return self.boot_id == boot_id()


def beside(dest: Path, suffix: str) -> Path:
    """The hidden file that goes with `dest`: `.{name}.{suffix}` in the same folder."""
    return dest.with_name(f".{dest.name}.{suffix}")


def read_stamp(dest: Path) -> Stamp | None:
    """The stamp of `dest`, or None where there is none or the file changed since."""
    try:
        stamp = Stamp(**json.loads(beside(dest, "stamp").read_text()))
        stat = dest.stat()
    except (FileNotFoundError, ValueError, TypeError):
        return None
    same = (stamp.num_bytes, stamp.mtime_ns, stamp.inode) == _key(stat)
    return stamp if same else None


def write_stamp(dest: Path, stat: os.stat_result, sha256: str, etag: str) -> None:
    """Record that the file had this digest when `stat` was taken (before hashing it)."""
    stamp = Stamp(*_key(stat), sha256=sha256, etag=etag, boot_id=boot_id())
    text = json.dumps(asdict(stamp))
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
