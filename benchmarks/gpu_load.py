"""Loading a cache entry into GPU memory, beside disk and PCIe bandwidth of the same bytes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks import bounds, fixture, gpu_data
from benchmarks.harness import Comparison, Contender, alternate
from benchmarks.load import latent_file
from benchmarks.roofline import synchronize
from benchmarks.settings import Settings, warm_page_cache
from ups.config import RunConfig
from ups.latents.build import CacheEntry, ensure
from ups.latents.chunks import bytes_of
from ups.latents.loader import load
from ups.startup import page_cache

CACHE = "cache-gpu"
THREADS, CHUNK_BYTES = 16, 16 << 20
NOTES = [
    "GPU load: every chunk read, its checksum compared, copied to the device (on a CPU: into RAM).",
    "disk: preadv of the same bytes into a buffer that was touched before. PCIe: one copy of the "
    "same bytes from pinned memory (on a CPU: from memory to memory). The slower is the bound.",
]


def run(settings: Settings) -> Iterator[Comparison]:
    source = gpu_data.data_set(settings)
    config = gpu_data.config(settings, CACHE, {"training.time_stride": 1})
    staged = gpu_data.sources(settings, source)
    entry = ensure(config, staged, device=settings.device)
    path, shape = latent_file(config, entry)
    on_gpu = settings.device == "cuda"
    host = torch.zeros(shape, dtype=torch.float16, pin_memory=on_gpu)
    for state, prepare in (("cold", page_cache.drop), ("warm", warm_page_cache)):

        def before(prepare: object = prepare) -> None:
            prepare(path)  # type: ignore[operator]

        results = alternate(
            [
                Contender("ours", "ours", lambda: _ours(config, entry, settings), before),
                Contender("safetensors", "peer", lambda: _safetensors(path, settings), before),
                Contender("disk", "bound", lambda: _disk(path, host), before),
                Contender("PCIe", "bound", lambda: _copy(host, settings.device)),
            ],
            settings.repeats,
        )
        medians = {r.name: r.spread.median for r in results if r.spread and r.role == "bound"}
        slower = max(medians, key=lambda name: medians[name], default="disk")
        yield Comparison(
            section="gpu_load",
            phase=f"load {host.nbytes / 1e6:.0f} MB into {settings.device} memory, {state}",
            unit="s",
            better="lower",
            results=results,
            targets={slower: 0.85},
            notes=NOTES,
        )


def _ours(config: RunConfig, entry: CacheEntry, settings: Settings) -> float:
    synchronize(settings.device)
    started = time.perf_counter()
    latents = load(config, {fixture.TASK: entry}, {}, device=settings.device)
    synchronize(settings.device)
    seconds = time.perf_counter() - started
    latents.close()
    return seconds


def _safetensors(path: Path, settings: Settings) -> float:
    from safetensors.torch import load_file

    started = time.perf_counter()
    loaded = load_file(path, device=settings.device)["latents"]
    if settings.device == "cpu":
        loaded = loaded.clone()  # it is a map of the file so far
    synchronize(settings.device)
    seconds = time.perf_counter() - started
    del loaded
    return seconds


def _disk(path: Path, host: torch.Tensor) -> float:
    return bounds.read_into(path, bytes_of(host), THREADS, CHUNK_BYTES)


def _copy(host: torch.Tensor, device: str) -> float:
    target = torch.empty_like(host, device=device, pin_memory=False)
    target.zero_()
    synchronize(device)
    started = time.perf_counter()
    target.copy_(host, non_blocking=True)
    synchronize(device)
    return time.perf_counter() - started
