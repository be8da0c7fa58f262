"""What this machine can do at most, measured beside the runs: the bounds of the phases."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from ups.config import Model, RunConfig
from ups.data.objectstore import ObjectInfo, ObjectStore
from ups.machine import page_cache

MIB = 1 << 20
SAMPLE_BYTES = 256 * MIB
RANGE_BYTES, CHUNK_BYTES = 16 * MIB, MIB
CONNECTIONS = 4
TRIALS = 3
ENOUGH_S = 5.0  # of trials: what takes so long varies little


class Rates(Model):
    """Bytes per second, the best of some trials.

    Attributes:
        store: from the object store over some connections, written nowhere.
        write: into a new file of the folder that the cache is in, until the disk has it.
        read: of a file, into memory that was touched before; from the page cache where the
            benchmark leaves it alone, else from the disk.
    """

    store: float
    write: float
    read: float

    def bounds_s(self, phase_bytes: Mapping[str, int]) -> dict[str, float]:
        """phase → the least seconds for its bytes, for the phases that moved any."""
        rates = {"download": self.store, "cache": self.write, "load": self.read}
        return {
            phase: num_bytes / rates[phase]
            for phase, num_bytes in phase_bytes.items()
            if phase in rates and num_bytes
        }


def measure(config: RunConfig, folder: Path, cache: page_cache.PageCache) -> Rates:
    """Measure them, each as the best of some trials: of one, where it takes many seconds.

    Args:
        config: its first training object is read from the store.
        folder: where a file of up to 256 MiB is written, and removed again.
    Raises:
        ObjectUnavailable, FetchError: the store does not answer.
    """
    sources = config.data.problems[0].sources
    assert sources is not None, "a benchmark's config names objects"
    source = sources["train"][0]
    with closing(ObjectStore(config.data.endpoint_url)) as store:
        info = store.head(*config.data.place_of(source))
        size = min(SAMPLE_BYTES, info.num_bytes)
        store_rate = _best(size, lambda: _fetch(store, info, size))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".bound-{os.getpid()}"
    buffer = bytearray(os.urandom(MIB) * (SAMPLE_BYTES // MIB // 2))
    try:
        write_rate = _best(len(buffer), lambda: _write(path, buffer))
        forget = (lambda: page_cache.forget(path)) if cache == "dropped" else lambda: None
        read_rate = _best(len(buffer), lambda: _read(path, buffer), before=forget)
    finally:
        path.unlink(missing_ok=True)
    return Rates(store=store_rate, write=write_rate, read=read_rate)


def _best(
    num_bytes: int, work: Callable[[], None], before: Callable[[], object] = lambda: None
) -> float:
    seconds = []
    for _ in range(TRIALS):
        before()
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
        if sum(seconds) >= ENOUGH_S:
            break
    return num_bytes / min(seconds)


def _fetch(store: ObjectStore, info: ObjectInfo, size: int) -> None:
    def read(start: int) -> None:
        with closing(store.open_range(info, start, min(start + RANGE_BYTES, size))) as body:
            while body.read(CHUNK_BYTES):
                pass

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        for _ in pool.map(read, range(0, size, RANGE_BYTES)):
            pass


def _write(path: Path, buffer: bytearray) -> None:
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.write(buffer)
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path, buffer: bytearray) -> None:
    with path.open("rb") as file:
        file.readinto(buffer)
