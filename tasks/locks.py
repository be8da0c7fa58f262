"""A Prefect lock manager on `flock`: a lock that dies with its holder.

Prefect's own file lock is a file whose presence is the lock; its holder's death leaves it for ever.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from pathlib import Path
from typing import Any, Self

import anyio.to_thread
from prefect.locking.protocol import LockManager

from ups.files import try_lock

POLL_S = 0.05


class FlockManager(LockManager):
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
        fd = self._open(key)
        started = time.monotonic()
        while not try_lock(fd):
            if acquire_timeout is not None and time.monotonic() - started >= acquire_timeout:
                os.close(fd)
                return False
            time.sleep(POLL_S)
        with self._mutex:
            self._held[key] = holder, fd
        return True

    def release_lock(self, key: str, holder: str) -> None:
        with self._mutex:
            if self._held.get(key, ("", 0))[0] != holder:
                raise ValueError(f"{holder} holds no lock for {key}")
            _, fd = self._held.pop(key)
        os.close(fd)

    def is_lock_holder(self, key: str, holder: str) -> bool:
        return self._held.get(key, ("", 0))[0] == holder

    def is_locked(self, key: str) -> bool:
        if key in self._held:
            return True
        fd = self._open(key)
        try:
            return not try_lock(fd)
        finally:
            os.close(fd)

    def wait_for_lock(self, key: str, timeout: float | None = None) -> bool:
        started = time.monotonic()
        while self.is_locked(key):
            if timeout is not None and time.monotonic() - started >= timeout:
                return False
            time.sleep(POLL_S)
        return True

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

    def _open(self, key: str) -> int:
        self._directory.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(key.encode()).hexdigest()[:32]
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        return os.open(self._directory / f"{name}.lock", flags, 0o644)
