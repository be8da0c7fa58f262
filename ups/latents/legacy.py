"""Legacy mode: the earlier way of working, with today's encoder. The baseline, and a fallback.

One process, batch 4, no workers, one `.pt` file per trajectory, the cache wiped at the start, and
batches read back from those files. Written as a sensible person would have, never slowed down.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ups.config import ProblemConfig, RunConfig, Split
from ups.data.frames import check_frames
from ups.data.sources import Staged, open_files
from ups.errors import Interrupted
from ups.files import require_free_space
from ups.latents.build import CACHE_REMEDY, CacheEntry
from ups.latents.datasets import LegacyCacheDataset, Rows, check_alike
from ups.latents.encode import PatchEncoder, fit_encoder
from ups.latents.key import ENCODED_SPLITS, compute_cache_hash, key_fields
from ups.latents.loader import Latents, assemble
from ups.latents.store import estimate_cache_size_mb
from ups.progress import Progress

BATCH = 4


def split_dir(config: ProblemConfig, split: str) -> Path:
    return config.training.latent_cache_dir / "legacy" / f"{config.problem.name}_{split}"


def encoder_path(config: ProblemConfig) -> Path:
    return config.training.latent_cache_dir / "legacy" / f"{config.problem.name}_encoder.json"


def precompute(
    config: ProblemConfig,
    sources: Mapping[str, Sequence[Staged]],
    *,
    stop: threading.Event | None = None,
    progress: Progress | None = None,
) -> CacheEntry:
    """Encode train and val on the CPU to `{problem}_{split}/sample_{i:05d}.pt`.

    Args:
        config: what an earlier run left of it is removed.
    """
    started = time.monotonic()
    dtype = getattr(torch, config.training.latent_cache_dtype)
    num_bytes = done = 0
    for split in ENCODED_SPLITS:
        shutil.rmtree(split_dir(config, split), ignore_errors=True)
    readers = {split: open_files(config, sources[split]) for split in ENCODED_SPLITS}
    encoder = fit_encoder(config, readers["train"])
    total = sum(r.num_trajectories for files in readers.values() for r in files)
    for split in ENCODED_SPLITS:
        directory, index = split_dir(config, split), 0
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
        sources: problem → the staged sources of each split.
    """
    started, by_problem = time.monotonic(), config.by_problem()
    encoders = {
        name: PatchEncoder.from_manifest(json.loads(encoder_path(own_config).read_text()))
        for name, own_config in by_problem.items()
    }
    rows: dict[Split, list[Rows]] = {split: [] for split in ENCODED_SPLITS}
    for split, of_split in rows.items():
        for name, own_config in by_problem.items():
            for reader in open_files(own_config, sources[name][split]):
                with reader:
                    of_split.append(Rows.of_fields(own_config, reader))
    check_alike(config, rows)

    def open_split(split: Split, condition_NC: Tensor) -> LegacyCacheDataset:
        directories = [split_dir(own_config, split) for own_config in by_problem.values()]
        return LegacyCacheDataset(directories, condition_NC, config.training.time_stride, device)

    fields = {name: key_fields(own, sources[name]) for name, own in by_problem.items()}
    return assemble(config, rows, open_split, encoders, fields, "legacy", started)
