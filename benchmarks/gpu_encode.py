"""Encoding the PDEBench-sized set on the GPU, beside the slower of disk read and disk write."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import bounds, fixture, gpu_data
from benchmarks.harness import Comparison, Contender, Sample, alternate
from benchmarks.settings import Settings, warm_page_cache
from benchmarks.utilisation import Utilisation
from ups.config import RunConfig
from ups.latents.build import ensure
from ups.latents.store import estimate_cache_size_mb
from ups.startup import page_cache

CACHE = "cache-gpu-encode"
THREADS, CHUNK_BYTES = 16, 16 << 20
NOTES = [
    "GPU encode: all trajectories, fp16, K = 16, D = 32, fit and fsync included, the cache folder "
    "emptied before; the set was solved on this machine. The plan hoped for 2 to 5 minutes.",
    f"disk read: the source by {THREADS} threads, each into a buffer of its own; disk write: the "
    f"latents' bytes by {THREADS} threads and fsync. The slower of the two is the bound.",
]


def run(settings: Settings) -> Iterator[Comparison]:
    path = gpu_data.data_set(settings)
    config = gpu_data.config(settings, CACHE)
    staged = gpu_data.sources(settings, path, whole=True)
    num = settings.scaled(gpu_data.NUM)
    num_bytes = int(estimate_cache_size_mb(config, num, settings.num_frames) * 1e6)

    def encode() -> Sample:
        with Utilisation(settings.device) as gpu:
            started = time.perf_counter()
            ensure(config, staged, device=settings.device)
            seconds = time.perf_counter() - started
        return Sample(seconds, {"GPU %": gpu.mean} if gpu.mean is not None else {})

    for state, prepare in (("cold", page_cache.drop), ("warm", warm_page_cache)):

        def before(prepare: object = prepare) -> None:
            fixture.empty(settings.folder / CACHE)
            prepare(path)  # type: ignore[operator]

        results = alternate(
            [
                Contender("ours", "ours", encode, before),
                Contender(
                    "disk read",
                    "bound",
                    lambda: bounds.read_through(path, THREADS, CHUNK_BYTES),
                    before,
                ),
                Contender("disk write", "bound", lambda: _write(config, num_bytes), before),
            ],
            settings.repeats,
        )
        medians = {r.name: r.spread.median for r in results if r.spread and r.role == "bound"}
        slower = max(medians, key=lambda name: medians[name], default="disk write")
        yield Comparison(
            section="gpu_encode",
            phase=f"encode {num:,} × {settings.num_frames} × {settings.grid_points}, "
            f"{path.stat().st_size / 1e9:.2f} GB, {state} page cache, {settings.device}",
            unit="s",
            better="lower",
            results=results,
            targets={slower: 0.8},
            notes=NOTES,
        )
    fixture.empty(settings.folder / CACHE)


def _read(path: Path) -> float:
    return bounds.read_through(path, THREADS, CHUNK_BYTES)


def _write(config: RunConfig, num_bytes: int) -> float:
    path = config.training.latent_cache_dir / "bound"
    return bounds.write_synced(path, num_bytes, THREADS, CHUNK_BYTES)
