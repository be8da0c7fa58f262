"""The file that an object arrives in: room for it, writes to it, and what a full disk means."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from ups.errors import DiskFull, UpsError
from ups.files import require_free_space, write_fully

ROOT_REMEDY = "set data.root or PDEBENCH_ROOT to a larger disk"


class PartialFile:
    """A file of `num_bytes`, of which any may be missing.

    Attributes:
        path: where it is.
        fd: while it is open.
    """

    fd: int

    def __init__(self, path: Path, num_bytes: int) -> None:
        self.path, self._num_bytes = path, num_bytes

    def require_room(self, num_bytes: int, what: str) -> None:
        """Refuse to begin where the disk has no room for so much of it.

        Raises:
            DiskFull: that is so.
        """
        present = self.path.stat().st_blocks * 512 if self.path.exists() else 0
        require_free_space(self.path.parent, max(0, num_bytes - present), what, ROOT_REMEDY)

    def open(self, *, whole: bool) -> None:
        """Open or create it, with its size.

        Args:
            whole: take the room for all of it at once.
        Raises:
            DiskFull, UpsError: there is none; it cannot be written.
        """
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            os.ftruncate(self.fd, self._num_bytes)
            if self._num_bytes and whole:
                os.posix_fallocate(self.fd, 0, self._num_bytes)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # then it stays sparse
                self.close()
                raise self._explained(error) from error

    def close(self) -> None:
        os.close(self.fd)

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Raises: as `open`."""
        self.append(self.fd, data, offset)

    def append(self, fd: int, data: bytes | memoryview, offset: int | None = None) -> None:
        """Write to a file beside it; raises as `open`."""
        try:
            write_fully(fd, data, offset)
        except OSError as error:
            raise self._explained(error) from error

    def _explained(self, error: OSError) -> UpsError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return DiskFull(
                f"{self.path}: the disk is full; expected room for "
                f"{self._num_bytes / 1e6:.0f} MB. Make room, or {ROOT_REMEDY}"
            )
        return UpsError(f"{self.path} cannot be written: {error}; {ROOT_REMEDY}")
