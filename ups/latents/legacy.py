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
from ups.data.sources import Staged, open_file
from ups.errors import Interrupted
from ups.files import require_free_space
from ups.latents.build import CACHE_REMEDY, CacheEntry
from ups.latents.datasets import LegacyCacheDataset
from ups.latents.encode import PatchEncoder, fit_encoder
from ups.latents.key import ENCODED_SPLITS, compute_cache_hash
from ups.latents.loader import Latents
from ups.latents.rows import Rows, check_alike, check_frames, condition_of, ranges_of
from ups.latents.store import estimate_cache_size_mb

BATCH = 4


def split_dir(config: RunConfig, split: str) -> Path:
    """Of the config of one task."""
    name = config.data.only_task.name
    return config.training.latent_cache_dir / "legacy" / f"{name}_{split}"


def encoder_path(config: RunConfig) -> Path:
    """Of the config of one task."""
    name = config.data.only_task.name
    return config.training.latent_cache_dir / "legacy" / f"{name}_encoder.json"


def precompute(
    config: RunConfig,
    sources: Mapping[str, Sequence[Staged]],
    *,
    stop: threading.Event | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CacheEntry:
    """Encode train and val on the CPU to `{task}_{split}/sample_{i:05d}.pt`.

    Args:
        config: of one task; what was there of it is removed.
    """
    started = time.monotonic()
    dtype = getattr(torch, config.training.latent_cache_dtype)
    num_bytes = done = 0
    for split in ENCODED_SPLITS:
        shutil.rmtree(split_dir(config, split), ignore_errors=True)
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
                        "params": {reader.equation.parameter: reader.parameter, "dt": reader.dt},
                        "bc": None,
                    }
                    torch.save(sample, directory / f"sample_{index:05d}.pt")
                    num_bytes += latent.nbytes
                    index += 1
                done += len(frames)
                if progress is not None:
                    progress(done, total)
            reader.close()
    encoder_path(config).write_text(json.dumps(encoder.to_manifest()))
    return CacheEntry(
        config_hash=compute_cache_hash(config, sources),
        generation="legacy",
        reused=False,
        num_trajectories=done,
        num_bytes=num_bytes,
        seconds=time.monotonic() - started,
    )


def load(
    config: RunConfig, sources: Mapping[str, Mapping[str, Sequence[Staged]]], device: str
) -> Latents:
    """The data sets that read those files, batch by batch.

    Args:
        sources: task → the staged sources of each split.
    """
    started, by_task = time.monotonic(), config.by_task()
    encoders = {
        name: PatchEncoder.from_manifest(json.loads(encoder_path(alone).read_text()))
        for name, alone in by_task.items()
    }
    rows = {
        split: [r for n, alone in by_task.items() for r in _look(alone, sources[n][split])]
        for split in ENCODED_SPLITS
    }
    train, val = (
        LegacyCacheDataset(
            [split_dir(alone, split) for alone in by_task.values()],
            condition_of(config, rows[split]),
            config.training.time_stride,
            device,
        )
        for split in ENCODED_SPLITS
    )
    for of_split in rows.values():
        check_alike(config, of_split)
    seconds = time.monotonic() - started
    return Latents(train, val, encoders, ranges_of(rows["val"]), "legacy", 0, seconds)


def _look(config: RunConfig, sources: Sequence[Staged]) -> list[Rows]:
    rows = []
    for reader in _open(config, sources):
        with reader:
            rows.append(Rows.of_fields(config, reader))
    return rows


def _open(config: RunConfig, sources: Sequence[Staged]) -> list[TrajectoryFile]:
    return [open_file(config, s.path, s.rows) for s in sources]
