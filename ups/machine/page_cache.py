"""What of the files the kernel keeps in memory when a run starts."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

PageCache = Literal["kept", "dropped"]
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


def drop(*paths: Path) -> str:
    """Drop the page cache, of the whole machine where we may, else of these files; says which."""
    os.sync()
    try:
        DROP_CACHES.write_text("1")
    except OSError:
        forget(*paths)
        return "posix_fadvise(DONTNEED) on the files"
    return str(DROP_CACHES)


def forget(*paths: Path) -> None:
    """Drop these files, or those in these folders, from memory, once the disk has them."""
    for path in files_in(paths):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def setting(chosen: PageCache) -> str:
    """`kept`, or `dropped` and how: the ways differ in what they reach, and so do the times."""
    return chosen if chosen == "kept" else f"{chosen} by {drop()}"


def files_in(paths: Iterable[Path]) -> list[Path]:
    """The files of these folders, at any depth, and those that are files themselves."""
    found = []
    for path in paths:
        found += [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    return found
