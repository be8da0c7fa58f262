"""The locks of the runs' folders: one process has a folder open, until it lets go or dies."""

from __future__ import annotations

import os
from pathlib import Path

from ups.files import lock_now

_held: dict[Path, int] = {}  # by this process


def hold(path: Path) -> bool:
    """Take the lock, or have it already; False where another process has it."""
    path = path.resolve()
    if path in _held:
        return True
    lock = lock_now(path)
    if lock is not None:
        _held[path] = lock
    return lock is not None


def let_go(path: Path) -> None:
    """Free the lock; nothing happens where this process does not have it."""
    lock = _held.pop(path.resolve(), None)
    if lock is not None:
        os.close(lock)


def _let_go_of_all() -> None:
    for lock in _held.values():
        os.close(lock)
    _held.clear()


# A lock is held while any process has its file open. A program that this process starts does not
# inherit it (O_CLOEXEC); a forked child would, and keep the folder locked after the run was killed.
os.register_at_fork(after_in_child=_let_go_of_all)
