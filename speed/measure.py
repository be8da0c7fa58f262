"""What a piece of work takes: seconds, memory at its peak, utilisation of the GPU meanwhile."""

from __future__ import annotations

import multiprocessing
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from ups.machine import page_cache
from ups.machine.gpu import MAX_HZ, GpuWatch, summary

T = TypeVar("T")
SAMPLE_EVERY_S = 1 / MAX_HZ
BOUND_THREADS, BOUND_CHUNK_BYTES = 16, 16 << 20  # of the bounds on a machine with a GPU


def synchronize(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def clocked(work: Callable[[], T], device: str = "cpu") -> tuple[float, T]:
    """Seconds of the work until the device is done with it, too, and its result."""
    synchronize(device)
    started = time.perf_counter()
    result = work()
    synchronize(device)
    return time.perf_counter() - started, result


def timed(work: Callable[[], object], device: str = "cpu") -> float:
    """Seconds of the work; letting go of its result is not counted."""
    return clocked(work, device)[0]


def fresh_process() -> ProcessPoolExecutor:
    """A process of its own that runs what is submitted, since memory once taken skews a peak."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def peak_of(work: Callable[[], T]) -> tuple[T, float, int]:
    """The result, seconds, and what the work adds to this process's memory at its peak.

    In bytes of resident memory: VmHWM at the end less VmRSS before.
    """
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    before = _status_bytes("VmRSS")
    seconds, result = clocked(work)
    return result, seconds, max(0, _status_bytes("VmHWM") - before)


def _status_bytes(name: str) -> int:
    found = re.search(rf"{name}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


@contextmanager
def gpu_watched(device: str) -> Iterator[GpuWatch | None]:
    """Sample the GPU that torch uses while something runs; None on a CPU."""
    if device != "cuda":
        yield None
        return
    import torch

    uuid = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
    with GpuWatch(MAX_HZ, uuid=f"GPU-{uuid.removeprefix('GPU-')}") as watch:
        yield watch


def mean_utilisation(watch: GpuWatch | None) -> float | None:
    """Percent, of the samples but the first, whose window reaches back before the start."""
    samples = watch.samples[1:] if watch else []
    use = summary(samples, samples[0].at, samples[-1].at) if samples else None
    return use.mean_pct if use else None


def warm_page_cache(*paths: Path) -> None:
    """Have the files in the page cache."""
    for path in page_cache.files_in(paths):
        with path.open("rb", buffering=0) as file:
            buffer = bytearray(8 << 20)
            while file.readinto(buffer):
                pass


CACHE_STATES = {"cold": page_cache.drop, "warm": warm_page_cache}


def run_checked(command: list[str], timeout_s: float = 60, **options: Any) -> str:
    """The standard output of a program.

    Raises:
        RuntimeError: it fails; with the end of what it said.
    """
    done: subprocess.CompletedProcess[str] = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout_s, **options
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-300:]
        raise RuntimeError(f"{' '.join(command[:4])}: {said}")
    return done.stdout
