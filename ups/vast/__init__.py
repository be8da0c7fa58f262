"""Rent a GPU on Vast.ai for one run: find an offer, launch, resume, and stop without fail.

The defaults of commands and models stand here, so that `--help` imports no model.
"""

GPU_RAM_GB = 12.0
DISK_GB = 60.0
RELIABILITY = 0.98
INET_MBPS = 200.0
MOUNT = "/workspace"
WORK = "/opt/ups"
MAX_HOURS = 24.0
MAX_STALL_HOURS = 0.5
