"""Legacy mode: the earlier way of working, with today's encoder. The baseline, and a fallback.

One process, batch 4, no workers, one `.pt` file per trajectory, the cache wiped at the start, and
batches read back from those files. Written as a sensible person would have, never slowed down.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from ups.config import RunConfig
from ups.data.pdebench import TrajectoryFile
from ups.data.sources import Staged
from ups.errors import Interrupted
from ups.files import require_free_space
from ups.latents.build import CACHE_REMEDY, CacheEntry
from ups.latents.datasets import LegacyCacheDataset
from ups.latents.encode import PatchEncoder, fit_encoder
from ups.latents.key import ENCODED_SPLITS, compute_cache_hash
from ups.latents.loader import Latents, check_frames
from ups.latents.store import estimate_cache_size_mb

BATCH = 4
ENCODER_NAME = "encoder.json"


def split_dir(config: RunConfig, split: str) -> Path:
    return config.training.latent_cache_dir / "legacy" / f"{config.data.task}_{split}"


def precompute(
    config: RunConfig,
    sources: Mapping[str, Sequence[Staged]],
    *,
    stop: threading.Event | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CacheEntry:
    """Encode train and val on the CPU to `{task}_{split}/sample_{i:05d}.pt`."""
    started = time.monotonic()
    dtype = getattr(torch, config.training.latent_cache_dtype)
    num_bytes = done = 0
    home = config.training.latent_cache_dir / "legacy"
    shutil.rmtree(home, ignore_errors=True)
    readers = {split: _open(config, sources[split]) for split in ENCODED_SPLITS}
    encoder = fit_encoder(config, readers["train"])
    total = sum(r.num_trajectories for files in readers.values() for r in files)
    for split in ENCODED_SPLITS:
        directory = split_dir(config, split)
        index = 0
        for reader in readers[split]:
            check_frames(config, reader.num_frames)
            needed_mb = estimate_cache_size_mb(config, reader.num_trajectories, reader.num_frames)
            needed = int(needed_mb * 1e6)
            require_free_space(directory, needed, "the legacy cache", CACHE_REMEDY)
            for row in range(0, reader.num_trajectories, BATCH):
                if stop is not None and stop.is_set():
                    raise Interrupted("the legacy cache build was stopped")
                frames = reader.read(row, min(row + BATCH, reader.num_trajectories))
                reader.check_finite(frames, row)
                for latent in encoder.encode(torch.from_numpy(frames)).to(dtype):
                    sample = {
                        "latent": latent.clone(),
                        "params": {"nu": reader.nu, "dt": reader.dt},
                        "bc": None,
                    }
                    torch.save(sample, directory / f"sample_{index:05d}.pt")
                    num_bytes += latent.nbytes
                    index += 1
                done += len(frames)
                if progress is not None:
                    progress(done, total)
            reader.close()
    (home / ENCODER_NAME).write_text(json.dumps(encoder.to_manifest()))
    return CacheEntry(
        config_hash=compute_cache_hash(config, sources),
        generation="legacy",
        reused=False,
        num_trajectories=done,
        num_bytes=num_bytes,
        seconds=time.monotonic() - started,
    )


def load(config: RunConfig, sources: Mapping[str, Sequence[Staged]], device: str) -> Latents:
    """The data sets that read those files, batch by batch."""
    started = time.monotonic()
    home = config.training.latent_cache_dir / "legacy"
    encoder = PatchEncoder.from_manifest(json.loads((home / ENCODER_NAME).read_text()))
    datasets = []
    for split in ENCODED_SPLITS:
        readers = _open(config, sources[split])
        nu_N = torch.cat([torch.full((r.num_trajectories,), r.nu) for r in readers])
        stride, dt = config.training.time_stride, readers[0].dt
        datasets.append(LegacyCacheDataset(split_dir(config, split), nu_N, dt, stride, device))
        for reader in readers:
            reader.close()
    train, val = datasets
    return Latents(train, val, encoder, "legacy", 0, time.monotonic() - started)


def _open(config: RunConfig, sources: Sequence[Staged]) -> list[TrajectoryFile]:
    grid_points = config.data.grid_points
    return [TrajectoryFile(s.path, s.rows, grid_points=grid_points) for s in sources]
