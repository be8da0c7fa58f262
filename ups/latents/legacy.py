"""Legacy mode: the earlier way of working, with today's encoder. The baseline, and a fallback.

One process, batch 4, no workers, one `.pt` file per trajectory, the cache wiped at the start, and
batches read back from those files. Written as a sensible person would have, never slowed down.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from ups.config import RunConfig
from ups.data.pdebench import TrajectoryFile, check_finite
from ups.data.sources import Staged
from ups.errors import Interrupted
from ups.files import require_free_space
from ups.latents.build import CACHE_REMEDY, CacheEntry
from ups.latents.datasets import LegacyCacheDataset
from ups.latents.encode import fit_encoder
from ups.latents.key import ENCODED_SPLITS, compute_cache_hash
from ups.latents.loader import Latents, check_frames
from ups.latents.store import estimate_cache_size_mb

log = logging.getLogger(__name__)

BATCH = 4


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
    with TrajectoryFile(sources["train"][0].path, sources["train"][0].rows) as first:
        encoder = fit_encoder(config, first)
    shutil.rmtree(config.training.latent_cache_dir / "legacy", ignore_errors=True)
    for split in ENCODED_SPLITS:
        directory = split_dir(config, split)
        index = 0
        for source in sources[split]:
            with TrajectoryFile(
                source.path, source.rows, grid_points=config.data.grid_points
            ) as reader:
                check_frames(config, reader.num_frames)
                total = reader.num_trajectories
                needed_mb = estimate_cache_size_mb(config, total, reader.num_frames)
                require_free_space(
                    directory, int(needed_mb * 1e6), "the legacy cache", CACHE_REMEDY
                )
                for row in range(0, total, BATCH):
                    if stop is not None and stop.is_set():
                        raise Interrupted("the legacy cache build was stopped")
                    frames = reader.read(row, min(row + BATCH, total))
                    check_finite(frames, source.path, row)
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
    with TrajectoryFile(sources["train"][0].path, sources["train"][0].rows) as reader:
        encoder, dt = fit_encoder(config, reader), reader.dt
    stride = config.training.time_stride
    train, val = (
        LegacyCacheDataset(split_dir(config, split), dt, stride, device) for split in ENCODED_SPLITS
    )
    return Latents(train, val, encoder, "legacy", 0, time.monotonic() - started)
