"""How much memory this process may still take, container limits included."""

from __future__ import annotations

from pathlib import Path

import psutil

from ups.machine.cgroup import MEMBERSHIPS, ROOT, folders_of

MARGIN = 0.1
# Of version 2 and of version 1: the limits, what is used, and the pages of files that the kernel
# gives back before it runs out of memory.
UNIFIED = (("memory.max", "memory.high"), "memory.current", "inactive_file")
LEGACY = (("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")


def cgroup_headroom_bytes(root: Path = ROOT, memberships: Path = MEMBERSHIPS) -> int | None:
    """Bytes left under the memory limits of this process's groups; None where there is no limit."""
    machine = psutil.virtual_memory().total
    unified, legacy = folders_of("memory", root, memberships)
    left = []
    for folder, (limit_names, usage_name, cache_name) in (
        *((folder, UNIFIED) for folder in unified),
        *((folder, LEGACY) for folder in legacy),
    ):
        limits = [_number(folder / name) for name in limit_names]
        limit = min((limit for limit in limits if limit is not None), default=machine)
        usage = _number(folder / usage_name)
        if usage is not None and limit < machine:
            used = usage - _of_stat(folder / "memory.stat", cache_name)
            left.append(max(0, limit - used))
    return min(left, default=None)


def available_ram_mb(root: Path = ROOT, memberships: Path = MEMBERSHIPS) -> float:
    """MB that can still be allocated: the machine's available memory or the cgroup's, the less."""
    available = psutil.virtual_memory().available
    headroom = cgroup_headroom_bytes(root, memberships)
    return (available if headroom is None else min(available, headroom)) / 1e6


def check_sufficient_ram(
    required_mb: float, margin: float = MARGIN, available_mb: float | None = None
) -> bool:
    """Whether `required_mb` fits into the available memory with a share of it to spare.

    Args:
        available_mb: None: what `available_ram_mb` finds.
    """
    available_mb = available_ram_mb() if available_mb is None else available_mb
    return required_mb <= available_mb * (1 - margin)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such group or file; `max`: no limit
        return None


def _of_stat(path: Path, name: str) -> int:
    try:
        fields = dict(line.split() for line in path.read_text().splitlines())
        return int(fields[name])
    except (OSError, ValueError, KeyError):
        return 0
