"""Disks that are too small or only to be read, and a user who may not read everything."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 600 KB, which another process has mounted for itself alone."""
    folder = tmp_path / "small-disk"
    folder.mkdir()
    with _mounted(folder, 'mount -t tmpfs -o size=600k none "$0"') as there:
        yield there


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A folder that every user may read; pytest's own is closed to all but its user."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def as_nobody() -> Callable[[], AbstractContextManager[None]]:
    """`with as_nobody():` in place of root, who may read and write whatever the modes are."""

    @contextmanager
    def switched() -> Iterator[None]:
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(user)

    return switched


@pytest.fixture
def read_only() -> Iterator[Callable[[Path], Path]]:
    """`read_only(folder)`: the same on a disk that can only be read, mounted likewise."""
    mount = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0"'
    with ExitStack() as mounts:
        yield lambda folder: mounts.enter_context(_mounted(folder, mount))


@contextmanager
def _mounted(folder: Path, mount: str) -> Iterator[Path]:
    command = ["unshare", "-rm", "sh", "-c", f"{mount} && echo mounted && exec cat", folder]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        if holder.stdout is None or not holder.stdout.readline():
            pytest.skip("needs the right to mount")
        yield Path(f"/proc/{holder.pid}/root", *folder.parts[1:])
