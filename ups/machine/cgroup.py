"""The control groups that this process is in, version 1 or 2, and the cores that they leave it."""

from __future__ import annotations

import math
import os
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIPS = Path("/proc/self/cgroup")


def folders_of(
    controller: str, root: Path = ROOT, memberships: Path = MEMBERSHIPS
) -> tuple[list[Path], list[Path]]:
    """The folders of this process's groups and of all above them, of version 2 and of version 1.

    A limit of any of them holds. Where a container has a root of its own, the path that the kernel
    names may not lie below it; then what is at the root counts.

    Args:
        controller: `memory` or `cpu`.
    """
    paths = {"": "/", controller: "/"}
    try:
        lines = memberships.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        paths |= {name: path for name in controllers.split(",") if name in paths}
    return _upwards(root, paths[""]), _upwards(root / controller, paths[controller])


def num_cores(root: Path = ROOT, memberships: Path = MEMBERSHIPS) -> int:
    """Cores that this process may use, by its affinity and its CPU quotas, which are rounded up."""
    cores = float(len(os.sched_getaffinity(0)))
    unified, legacy = folders_of("cpu", root, memberships)
    found = [_read(folder, "cpu.max") for folder in unified]
    found += [
        f"{_read(folder, 'cpu.cfs_quota_us')} {_read(folder, 'cpu.cfs_period_us')}"
        for folder in legacy
    ]
    for text in found:
        numbers = text.split()
        if len(numbers) == 2 and all(number.isdigit() for number in numbers):  # no limit: max, -1
            cores = min(cores, int(numbers[0]) / int(numbers[1]))
    return max(1, math.ceil(cores))


def _upwards(base: Path, path: str) -> list[Path]:
    inner = base / path.lstrip("/")
    return [folder for folder in (inner, *inner.parents) if folder.is_relative_to(base)]


def _read(folder: Path, name: str) -> str:
    try:
        return (folder / name).read_text().strip()
    except OSError:  # the root has no such file, nor has a group without this controller
        return ""
