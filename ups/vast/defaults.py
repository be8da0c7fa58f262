"""What the command line and the models take for granted; apart, so that `--help` stays instant."""

from __future__ import annotations

GPU_RAM_GB = 12.0
DISK_GB = 60.0
RELIABILITY = 0.98
INET_MBPS = 200.0
MOUNT = "/workspace"
WORK = "/opt/ups"
MAX_HOURS = 24.0
MAX_STALL_HOURS = 0.5
