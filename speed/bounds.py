"""What bounds a phase: the same bytes moved by the same number of threads, and nothing else."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ups.data.pdebench import TrajectoryFile
from ups.files import read_fully


def read_into(path: Path, buffer: memoryview, num_threads: int, chunk_bytes: int) -> float:
    """Seconds to read the end of a file, as much as fits, into a buffer."""
    size, first = len(buffer), path.stat().st_size - len(buffer)
    with path.open("rb", buffering=0) as file:

        def work(start: int) -> None:
            read_fully(file.fileno(), buffer[start : start + chunk_bytes], first + start)

        return _timed_map(work, range(0, size, chunk_bytes), num_threads)


def read_through(path: Path, num_threads: int, chunk_bytes: int) -> float:
    """Seconds to read a whole file, each thread into a buffer of its own, over and over."""
    local = threading.local()
    with path.open("rb", buffering=0) as file:

        def work(offset: int) -> None:
            if not hasattr(local, "buffer"):
                local.buffer = bytearray(chunk_bytes)
            os.preadv(file.fileno(), [local.buffer], offset)

        return _timed_map(work, range(0, path.stat().st_size, chunk_bytes), num_threads)


def write_synced(path: Path, num_bytes: int, num_threads: int, chunk_bytes: int) -> float:
    """Seconds to write a preallocated file and force it to the disk; the file is removed again."""
    data = memoryview(np.random.default_rng(0).bytes(chunk_bytes))
    with _allocated(path, num_bytes) as fd:

        def work(start: int) -> None:
            os.pwrite(fd, data[: num_bytes - start], start)

        seconds = _timed_map(work, range(0, num_bytes, chunk_bytes), num_threads)
        started = time.perf_counter()
        os.fsync(fd)
        return seconds + time.perf_counter() - started


def read_and_write(
    source: TrajectoryFile, path: Path, num_threads: int, chunk_rows: int, row_bytes: int
) -> float:
    """Seconds to read a source and to write `row_bytes` per trajectory, without fsync.

    Each thread reads into, and writes from, buffers of its own.
    """
    num = source.num_trajectories
    local = threading.local()
    with _allocated(path, num * row_bytes) as fd:

        def work(first: int) -> None:
            if not hasattr(local, "frames"):
                shape = (chunk_rows, source.num_frames, source.grid_points)
                local.frames = np.empty(shape, np.float32)
                local.latents = memoryview(bytearray(chunk_rows * row_bytes))
            end = min(first + chunk_rows, num)
            source.read(first, end, out=local.frames[: end - first])
            os.pwrite(fd, local.latents[: (end - first) * row_bytes], first * row_bytes)

        return _timed_map(work, range(0, num, chunk_rows), num_threads)


@contextmanager
def _allocated(path: Path, num_bytes: int) -> Iterator[int]:
    """The descriptor of a new file of this size, which is removed in the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb", buffering=0) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, num_bytes)
            yield file.fileno()
        finally:
            path.unlink()


def _timed_map(work: Callable[[int], None], jobs: Sequence[int], num_threads: int) -> float:
    with ThreadPoolExecutor(max(1, num_threads)) as pool:
        started = time.perf_counter()
        for _ in pool.map(work, jobs):
            pass
        return time.perf_counter() - started
