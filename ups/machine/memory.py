"""How much memory this process may still take, container limits included."""

from __future__ import annotations

from pathlib import Path

import psutil

CGROUP_ROOT = Path("/sys/fs/cgroup")
MARGIN = 0.1


def cgroup_headroom_bytes(root: Path = CGROUP_ROOT) -> int | None:
    """Bytes left under the cgroup's memory limit (v2, else v1); None where there is no limit."""
    for limit_name, usage_name in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            limit = (root / limit_name).read_text().strip()
            usage = int((root / usage_name).read_text())
        except (OSError, ValueError):
            continue
        if limit.isdigit() and int(limit) < psutil.virtual_memory().total:
            return max(0, int(limit) - usage)
    return None


def available_ram_mb(root: Path = CGROUP_ROOT) -> float:
    """MB that can still be allocated: the machine's available memory or the cgroup's, the less."""
    available = psutil.virtual_memory().available
    headroom = cgroup_headroom_bytes(root)
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
