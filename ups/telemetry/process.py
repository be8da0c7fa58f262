"""When this process started."""

from __future__ import annotations

import os
import time
from pathlib import Path

START_FIELD = 19  # of /proc/PID/stat, counted behind the name: clock ticks since the boot


def process_started_at() -> float:
    """Unix time in seconds, to a hundredth.

    psutil's `create_time` adds the boot time, which the kernel gives in whole seconds.
    """
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started_s = int(fields[START_FIELD]) / os.sysconf("SC_CLK_TCK")
    return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - started_s)
