"""When a process started, and so whether it is the one that was noted down."""

from __future__ import annotations

import os
import time
from pathlib import Path

START_FIELD = 19  # of /proc/PID/stat, counted behind the name: clock ticks since the boot
SAME_S = 2.0  # Unix times move when the clock is set


def process_started_at(pid: int | None = None) -> float:
    """Unix time in seconds, to a hundredth; of this process, or of another.

    psutil's `create_time` adds the boot time, which the kernel gives in whole seconds.

    Raises:
        OSError: there is no such process.
    """
    stat = Path(f"/proc/{pid or 'self'}/stat").read_text()
    started_s = int(stat.rpartition(")")[2].split()[START_FIELD]) / os.sysconf("SC_CLK_TCK")
    return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - started_s)


def is_running(pid: int, started_at: float) -> bool:
    """Whether the process of this number is there, and is the one that started then."""
    try:
        return abs(process_started_at(pid) - started_at) < SAME_S
    except OSError:
        return False
