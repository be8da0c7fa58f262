"""Make the CUDA context of this process beside what comes before its first use of the GPU."""

from __future__ import annotations

import ctypes
import logging
import threading
from typing import Any

log = logging.getLogger(__name__)

DRIVER = "libcuda.so.1"


def make_context_beside() -> threading.Thread:
    """Have the context of the first GPU made in a thread; without effect where there is none.

    The first use of a GPU waits for it, some tenths of a second. It needs neither torch nor the
    interpreter, so it is made while they import and ask. It is the device's primary one, which
    torch takes as it finds it. A process with a context must not fork without an exec.
    """
    thread = threading.Thread(target=_make, name="make the CUDA context", daemon=True)
    thread.start()
    return thread


def _make() -> None:
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:  # no GPU here; where the config asks for one, the validation says so
        return
    retain_primary_context(driver)


def retain_primary_context(driver: Any) -> None:
    """Make the primary context of device 0, or say why that failed.

    Args:
        driver: the library of CUDA's driver.
    """
    device, context = ctypes.c_int(), ctypes.c_void_p()
    calls = {
        "cuInit": (0,),
        "cuDeviceGet": (ctypes.byref(device), 0),
        "cuDevicePrimaryCtxRetain": (ctypes.byref(context), device),
    }
    for name, arguments in calls.items():
        if code := getattr(driver, name)(*arguments):
            log.info("no CUDA context beside the boot (%s: error %d): torch makes it", name, code)
            return
