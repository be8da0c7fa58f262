"""Cache build: ours beside legacy mode with the same encoder; memory for few and many."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import bounds, fixture
from benchmarks.harness import Comparison, Contender, Result, alternate
from benchmarks.memory import peak_of
from benchmarks.settings import Settings, warm_page_cache
from benchmarks.worker import Worker
from ups.config import Features, RunConfig
from ups.data.pdebench import TrajectoryFile
from ups.latents.build import ensure
from ups.latents.legacy import precompute
from ups.latents.store import ITEM_BYTES

NUM, NUM_LARGE = 512, 4096
MEMORY_REPEATS = 2
CACHE = "cache-build"
NOTES = [
    "Cache build: train and val, fit of the encoder included, the source in the page cache, the "
    "cache folder emptied before each repeat. Ours ends with fsync, legacy mode does not.",
    "read + write: the source read and the latents' bytes written by as many threads, no encoding, "
    "no fsync. write + fsync: the latents' bytes alone, forced to the disk.",
]


def run(settings: Settings) -> Iterator[Comparison]:
    num = settings.scaled(NUM)
    config, staged = fixture.config(settings, CACHE), fixture.sources(settings, num)
    total, folder = num + fixture.NUM_VAL, settings.folder / CACHE
    legacy = fixture.config(settings, CACHE, {"features": Features.legacy().model_dump()})

    def rate(seconds: float) -> float:
        return total / seconds

    def ours() -> float:
        return rate(_timed(lambda: ensure(config, staged)))

    def peer() -> float:
        return rate(_timed(lambda: precompute(legacy, staged)))

    def read_write() -> float:
        return rate(_read_write(config, path, total))

    def write() -> float:
        return rate(_write(config, path, total))

    def clean() -> None:
        fixture.empty(folder)

    path = fixture.trajectories(settings)
    warm_page_cache(path)
    yield Comparison(
        section="cache",
        phase=f"cache build, N = {num}, CPU",
        unit="trajectories/s",
        better="higher",
        results=alternate(
            [
                Contender("ours", "ours", ours, clean),
                Contender("legacy mode", "peer", peer, clean),
                Contender("read + write", "bound", read_write, clean),
                Contender("write + fsync", "bound", write, clean),
            ],
            settings.repeats,
        ),
        targets={"write + fsync": 0.5},
        notes=[*NOTES, f"Threads: {config.training.num_workers}."],
    )
    yield _peak_memory(settings)
    fixture.empty(folder)


def _peak_memory(settings: Settings) -> Comparison:
    """The large build's peak is the small one's: memory is O(batch)."""
    large, small = (settings.scaled(n) for n in (NUM_LARGE, NUM))

    def measure(num: int) -> float:
        with Worker("benchmarks.cache") as worker:
            fresh = {"folder": str(settings.folder), "num": num, **_shape(settings)}
            found: dict[str, float] = worker.call("build_once", **fresh)
        return found["peak_bytes"] / 1e6

    def clean() -> None:
        fixture.empty(settings.folder / CACHE)

    results: list[Result] = alternate(
        [
            Contender(f"N = {large}", "ours", lambda: measure(large), clean),
            Contender(f"N = {small}", "peer", lambda: measure(small), clean),
        ],
        min(MEMORY_REPEATS, settings.repeats),
        warm_ups=0,
    )
    return Comparison(
        section="cache",
        phase=f"peak memory of the build, N = {large} beside N = {small}",
        unit="MB",
        better="lower",
        results=results,
        targets={f"N = {small}": 1 / 1.1},
        notes=[
            "Peak memory: VmHWM during the build less VmRSS before it, each in a fresh process "
            f"({MEMORY_REPEATS} repeats); the target is at most 10 % more for the larger build."
        ],
    )


def build_once(folder: str, num: int, **shape: Any) -> dict[str, float]:
    """Called in a process of its own: one build, its seconds and its peak."""
    settings = Settings(folder=Path(folder), **shape)
    config, staged = fixture.config(settings, CACHE), fixture.sources(settings, num)
    seconds, peak_bytes = peak_of(lambda: ensure(config, staged))
    return {"seconds": seconds, "peak_bytes": peak_bytes}


def _shape(settings: Settings) -> dict[str, Any]:
    names = ("size", "num_solved", "num_frames", "grid_points")
    return {name: getattr(settings, name) for name in names}


def _row_bytes(config: RunConfig, num_frames: int) -> int:
    item = ITEM_BYTES[config.training.latent_cache_dtype]
    return num_frames * config.latent.tokens * config.latent.dim * item


def _read_write(config: RunConfig, source_path: Path, total: int) -> float:
    training, path = config.training, config.training.latent_cache_dir / "bound"
    with TrajectoryFile(source_path, (0, total)) as source:
        row_bytes = _row_bytes(config, source.num_frames)
        return bounds.read_and_write(
            source, path, training.num_workers, training.encode_batch_size, row_bytes
        )


def _write(config: RunConfig, source_path: Path, total: int) -> float:
    training, path = config.training, config.training.latent_cache_dir / "bound"
    with TrajectoryFile(source_path, (0, total)) as source:
        row_bytes = _row_bytes(config, source.num_frames)
    chunk_bytes = training.encode_batch_size * row_bytes
    return bounds.write_synced(path, total * row_bytes, training.num_workers, chunk_bytes)


def _timed(work: Any) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
