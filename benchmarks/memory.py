"""What a piece of work adds to this process's memory at its peak."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def peak_of(work: Callable[[], Any]) -> tuple[float, int]:
    """Seconds, and bytes of resident memory at the peak less those before (VmHWM − VmRSS)."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    before, started = _status("VmRSS"), time.perf_counter()
    result = work()
    seconds = time.perf_counter() - started
    added = _status("VmHWM") - before
    del result
    return seconds, max(0, added)


def _status(name: str) -> int:
    text = Path("/proc/self/status").read_text()
    found = re.search(rf"{name}:\s*(\d+) kB", text)
    assert found is not None
    return int(found[1]) * 1024
