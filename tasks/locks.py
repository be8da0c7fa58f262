"""A Prefect lock manager on `flock`: a lock that dies with its holder.

Prefect's own file lock is a file whose presence is the lock; its holder's death leaves it for ever.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import anyio.to_thread
from prefect.locking.protocol import LockManager

from ups.files import is_locked, lock_now

POLL_S = 0.05


class FlockManager(LockManager):
    """Locks as files of a directory, each held by an open file of its holder."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._held: dict[str, tuple[str, int]] = {}
        self._mutex = threading.Lock()

    def __deepcopy__(self, memo: Any) -> Self:
        return self

    def acquire_lock(
        self,
        key: str,
        holder: str,
        acquire_timeout: float | None = None,
        hold_timeout: float | None = None,  # noqa: ARG002 (a dead holder's lock is free at once)
    ) -> bool:
        if self.is_lock_holder(key, holder):
            return True

        def take() -> bool:
            fd = lock_now(self._path(key))
            if fd is not None:
                with self._mutex:
                    self._held[key] = holder, fd
            return fd is not None

        return _poll(take, acquire_timeout)

    def release_lock(self, key: str, holder: str) -> None:
        with self._mutex:
            if self._held.get(key, ("", 0))[0] != holder:
                raise ValueError(f"{holder} holds no lock for {key}")
            _, fd = self._held.pop(key)
        os.close(fd)

    def is_lock_holder(self, key: str, holder: str) -> bool:
        return self._held.get(key, ("", 0))[0] == holder

    def is_locked(self, key: str) -> bool:
        return key in self._held or is_locked(self._path(key))

    def wait_for_lock(self, key: str, timeout: float | None = None) -> bool:
        return _poll(lambda: not self.is_locked(key), timeout)

    async def aacquire_lock(
        self,
        key: str,
        holder: str,
        acquire_timeout: float | None = None,
        hold_timeout: float | None = None,
    ) -> bool:
        return await anyio.to_thread.run_sync(
            self.acquire_lock, key, holder, acquire_timeout, hold_timeout
        )

    async def await_for_lock(self, key: str, timeout: float | None = None) -> bool:
        return await anyio.to_thread.run_sync(self.wait_for_lock, key, timeout)

    def _path(self, key: str) -> Path:
        return self._directory / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.lock"


def _poll(is_done: Callable[[], bool], timeout_s: float | None) -> bool:
    """Ask again until it is done; False once the time is over."""
    started_at = time.monotonic()
    while not is_done():
        if timeout_s is not None and time.monotonic() - started_at >= timeout_s:
            return False
        time.sleep(POLL_S)
    return True
