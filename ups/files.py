"""File operations that must not be half done: atomic writes, checked reads, locks, room on disk."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import xxhash

from ups.errors import DiskFull, Interrupted

log = logging.getLogger(__name__)

CHECK = b'{"check": "'
CHECK_DIGITS = 16
LOCK_POLL_S = 0.05
FIRST_PAUSE_S = 60.0  # before a wait for a lock is told again; each later one is four times as long
DISK_MARGIN_BYTES = 64 << 20
# Such as NFS without its lock service; NFS wants a file that is open for writing, too.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF)
LEFTOVER_AGE_S = 3600

_said_without_locks = False


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = True, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Write a file aside and put it into the place of `path`: a reader sees the old one or the new.

    What a killed writer of the same file left aside, an hour ago or earlier, goes.

    Args:
        durable: also after a power cut; costs a wait for the disk.
        mode: who may read and write it, less the umask.
    """
    new = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = _aside(path)
    try:
        with open(aside, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        aside.replace(path)
        _remove_leftovers(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # writing names none
        raise
    finally:
        aside.unlink(missing_ok=True)
    if durable:
        for folder in (path.parent, *(folder.parent for folder in new)):
            sync_directory(folder)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")


def _remove_leftovers(path: Path) -> None:
    oldest = time.time() - LEFTOVER_AGE_S
    ours = re.compile(rf"\.{re.escape(path.name)}\.\d+-\d+")
    with contextlib.suppress(OSError):  # the folder cannot be listed, or another writer was faster
        for aside in path.parent.iterdir():
            if ours.fullmatch(aside.name) and aside.stat().st_mtime < oldest:
                aside.unlink()


def write_atomically(path: Path, data: bytes, *, durable: bool = True, mode: int = 0o666) -> None:
    """Write bytes by `replacing`."""
    with replacing(path, durable=durable, mode=mode) as file:
        file.write(data)


def link_or_copy(path: Path, other: Path) -> None:
    """Put a file into the place of `other`, too: as a link, or a copy where there are none."""
    aside = _aside(other)
    try:
        os.link(path, aside)
    except OSError:
        with path.open("rb") as source, replacing(other) as copy:
            shutil.copyfileobj(source, copy)
        return
    try:
        aside.replace(other)
    finally:
        aside.unlink(missing_ok=True)
    sync_directory(other.parent)


def write_json(path: Path, content: object, *, in_place: bool = False) -> None:
    """Write a small record, sealed, by `replacing`, without a wait for the disk.

    Args:
        in_place: into the file that is there, for which a full disk has room.
    """
    data = seal((json.dumps(content, indent=1) + "\n").encode())
    if in_place:
        with path.open("r+b") as file:
            file.write(data)
            file.truncate()
    else:
        write_atomically(path, data, durable=False)


def read_json(path: Path) -> Any:
    """Read what `write_json` wrote, or an earlier version without a seal.

    Raises:
        FileNotFoundError, ValueError: there is no such file; it is damaged.
    """
    return json.loads(unseal(path.read_bytes()))


def seal(text: bytes) -> bytes:
    """JSON with a checksum of all the rest as its first member, `check`.

    Args:
        text: an object that is not empty, or lines of objects, of which the first gets it.
    """
    rest = text[1:]
    return CHECK + xxhash.xxh3_64_hexdigest(rest).encode() + b'",' + rest


def unseal(data: bytes) -> bytes:
    """The text that was sealed; what never was, as of an earlier version, is as it is.

    Raises:
        ValueError: it is not what was written.
    """
    end = len(CHECK) + CHECK_DIGITS
    check, rest = data[len(CHECK) : end], data[end + 2 :]
    found = xxhash.xxh3_64_hexdigest(rest).encode()
    if found == check:  # whatever became of the member's name
        return b"{" + rest
    if data.startswith(CHECK):
        raise ValueError(
            f"its checksum is {found.decode()}, expected {check.decode(errors='replace')}"
        )
    return data


def read_fully(fd: int, view: memoryview, offset: int) -> int:
    """Fill `view` from the file's bytes at `offset`; returns how many the file ends too early."""
    while view and (count := os.preadv(fd, [view], offset)):
        view, offset = view[count:], offset + count
    return len(view)


def write_fully(fd: int, data: bytes | memoryview, offset: int | None = None) -> None:
    """Write all of `data` at `offset`, or at the end of a file that is opened to append."""
    view = memoryview(data)
    while view:
        count = os.write(fd, view) if offset is None else os.pwrite(fd, view, offset)
        view, offset = view[count:], None if offset is None else offset + count


def sync_directory(path: Path) -> None:
    """Have the names in a directory survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def start_writeback(fd: int, offset: int, num_bytes: int) -> bool:
    """Have the kernel begin to write these bytes to the disk; whether it does. Waits for nothing.

    Left to itself it waits until many are dirty (a tenth of the memory, say), so that `fsync` at
    the end writes nearly all of them, while nothing else goes on.
    """
    if _SYNC_FILE_RANGE is None:
        return False
    return _SYNC_FILE_RANGE(fd, offset, num_bytes, SYNC_FILE_RANGE_WRITE) == 0


def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    """Linux's call, which Python's `os` lacks; None where the C library has none."""
    function = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if function is None:
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return cast(Callable[[int, int, int, int], int], function)


SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h
_SYNC_FILE_RANGE = _sync_file_range()


def punch_hole(fd: int, offset: int, num_bytes: int) -> bool:
    """Give the disk back what these bytes take; they read as zeros then. Whether it is done."""
    return _FALLOCATE is not None and _FALLOCATE(fd, PUNCH_HOLE, offset, num_bytes) == 0


def _fallocate() -> Callable[[int, int, int, int], int] | None:
    """Linux's call, of which Python has the POSIX part alone; None where there is none."""
    function = getattr(ctypes.CDLL(None), "fallocate", None)
    if function is None:
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    return cast(Callable[[int, int, int, int], int], function)


PUNCH_HOLE = 0x02 | 0x01  # linux/falloc.h; the size stays
_FALLOCATE = _fallocate()


@contextlib.contextmanager
def exclusive_lock(path: Path, stop: threading.Event | None = None) -> Iterator[None]:
    """Hold an OS lock on `path`; the kernel frees it when its holder dies. Waits for others.

    Raises:
        Interrupted: `stop` was set while waiting.
    """
    began = said = time.monotonic()
    pause_s = 0.0
    while (fd := lock_now(path)) is None:
        now = time.monotonic()
        if now - said >= pause_s:
            waited = f", for {now - began:.0f} s so far" if pause_s else ""
            log.info("waiting for %s, which holds %s%s", lock_holder(path), path, waited)
            said, pause_s = now, 4 * pause_s or FIRST_PAUSE_S
        if stop is not None and stop.is_set():
            raise Interrupted(f"stopped while waiting for the lock {path}")
        time.sleep(LOCK_POLL_S)
    try:
        yield
    finally:
        os.close(fd)


def lock_now(path: Path) -> int | None:
    """An open file that holds the lock on `path`; None where it is not to be had at once.

    Its holder may delete the file: a lock on a deleted file locks nothing, and is let go again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        fd = open_lock_file(path, os.O_RDWR | os.O_CREAT)
    except FileNotFoundError:  # the folder was removed meanwhile
        return None
    if try_lock(fd) and _is_at(fd, path):
        return fd
    os.close(fd)
    return None


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def is_locked(path: Path) -> bool:
    """Whether somebody holds a lock on `path`, shared or not; takes it for a moment to see."""
    try:
        fd = open_lock_file(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        return not try_lock(fd)
    finally:
        os.close(fd)


def lock_holder(path: Path) -> str:
    """Who holds the lock: `this process`, `process 4711`, or `another process` if nobody knows.

    The kernel knows it of processes of this machine, unless a container hides them.
    """
    with contextlib.suppress(OSError):
        at = os.stat(path)
        place = f"{os.major(at.st_dev):02x}:{os.minor(at.st_dev):02x}:{at.st_ino}"
        for line in Path("/proc/locks").read_text().splitlines():
            # 7: FLOCK  ADVISORY  WRITE 4711 fe:00:2605305 0 EOF
            _, kind, _, _, pid, *rest = line.replace("-> ", "").split()
            if kind == "FLOCK" and rest[0] == place and int(pid) > 0:
                return "this process" if int(pid) == os.getpid() else f"process {pid}"
    return "another process"


def open_lock_file(path: Path, flags: int) -> int:
    """Open a file to lock it; for reading alone where the file system allows no more."""
    try:
        return os.open(path, flags | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES) or not path.exists():
            raise
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def try_lock(fd: int, *, shared: bool = False) -> bool:
    """Take the lock on an open file if it is free at once, or there are no locks there."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        _say_without_locks(os.readlink(f"/proc/self/fd/{fd}"), error.strerror or "")
    return True


def _say_without_locks(path: str, reason: str) -> None:
    """Once in a process: the next lock is as little to be had."""
    global _said_without_locks
    if not _said_without_locks:
        _said_without_locks = True
        log.warning(
            "%s cannot be locked (%s): going on without locks; have one run at a time use this "
            "file system, or move the folder to another",
            path,
            reason,
        )


def require_free_space(directory: Path, needed_bytes: int, what: str, remedy: str) -> None:
    """Refuse to begin what the disk has no room for.

    Raises:
        DiskFull: `directory`'s file system has no room for `needed_bytes` and a margin.
    """
    directory.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(directory).free
    if needed_bytes + DISK_MARGIN_BYTES > free:
        raise DiskFull(
            f"{what} needs {needed_bytes / 1e6:,.0f} MB in {directory}, found {free / 1e6:,.0f} MB "
            f"free (and {DISK_MARGIN_BYTES / 1e6:.0f} MB must stay free): make room, or {remedy}"
        )
