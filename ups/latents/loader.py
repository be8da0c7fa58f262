"""Put a cache entry where the training loop reads it fastest, and check it on the way."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import xxhash
from torch import Tensor

from ups.config import RunConfig, Split
from ups.data.pdebench import TrajectoryFile
from ups.data.sources import Staged
from ups.errors import CacheDamaged, CacheError, DataError, Interrupted
from ups.latents import store
from ups.latents.build import CacheEntry, ensure
from ups.latents.chunks import bytes_of
from ups.latents.datasets import (
    DiskCacheDataset,
    GridLatentPairDataset,
    LatentDataset,
    PreloadedCacheDataset,
    nu_of,
)
from ups.latents.encode import PatchEncoder, fit_encoder
from ups.latents.key import ENCODED_SPLITS
from ups.latents.store import LatentFile
from ups.latents.tiers import choose_tier

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Latents:
    """Train and val, ready to be read, and the encoder that turns them back into fields.

    Attributes:
        tier: `gpu`, `ram`, `disk`, `legacy` or `on demand`.
        num_bytes: read to get there.
    """

    train: LatentDataset
    val: LatentDataset
    encoder: PatchEncoder
    tier: str
    num_bytes: int
    seconds: float
    hold: store.InUse | None = field(default=None, repr=False)

    def close(self) -> None:
        """Let go of the cache entry, which may then be evicted."""
        if self.hold is not None:
            self.hold.close()
            self.hold = None


def load(
    config: RunConfig,
    entry: CacheEntry,
    sources: Mapping[str, Sequence[Staged]],
    *,
    device: str,
    stop: threading.Event | None = None,
) -> Latents:
    """Load an entry into the best tier; a damaged one is set aside and rebuilt once.

    Raises:
        CacheDamaged: the rebuilt entry is damaged, too.
    """
    try:
        return _load(config, entry, device, stop)
    except CacheError as damage:
        aside = store.quarantine(config.training.latent_cache_dir, entry.config_hash)
        log.warning("%s; moved to %s; building it anew", damage, aside)
    entry = ensure(config, sources, device=device, stop=stop)
    return _load(config, entry, device, stop)


def _load(
    config: RunConfig, entry: CacheEntry, device: str, stop: threading.Event | None
) -> Latents:
    started = time.monotonic()
    cache_dir = config.training.latent_cache_dir
    manifest, hold = store.hold_current(cache_dir, entry.config_hash)
    directory = store.generation_dir(cache_dir, manifest)
    try:
        tier, stepped_down = choose_tier(config, manifest.num_bytes, device)
        for reason in stepped_down:
            log.warning("%s", reason)
        read = threading.Event() if stop is None else stop
        stride = config.training.time_stride
        splits: dict[Split, LatentDataset] = {}
        for split in ENCODED_SPLITS:
            files = manifest.of_split(split)
            check_frames(config, files[0].shape[1])
            if tier == "disk":
                splits[split] = DiskCacheDataset(directory, files, stride, device)
            else:
                z_NTKD = read_files(directory, files, config, tier, read)
                step_dt = files[0].dt * stride
                splits[split] = PreloadedCacheDataset(z_NTKD, nu_of(files), step_dt, device)
    except BaseException:
        hold.close()
        raise
    seconds = time.monotonic() - started
    megabytes = manifest.num_bytes / 1e6
    log.info(
        "latents %s in %s: %.0f MB in %.2f s, %.0f MB/s",
        entry.config_hash,
        tier,
        megabytes,
        seconds,
        megabytes / seconds,
    )
    encoder = PatchEncoder.from_manifest(manifest.encoder)
    return Latents(splits["train"], splits["val"], encoder, tier, manifest.num_bytes, seconds, hold)


def load_on_demand(
    config: RunConfig, sources: Mapping[str, Sequence[Staged]], *, device: str
) -> Latents:
    """No cache: the encoder is fitted, and encodes each batch when it is asked for."""
    started = time.monotonic()
    readers = {
        split: [
            TrajectoryFile(s.path, s.rows, grid_points=config.data.grid_points)
            for s in sources[split]
        ]
        for split in ENCODED_SPLITS
    }
    check_frames(config, readers["train"][0].num_frames)
    encoder = fit_encoder(config, readers["train"])
    on_device = encoder.to(device)
    train, val = (
        GridLatentPairDataset(readers[split], on_device, config.training.time_stride)
        for split in ENCODED_SPLITS
    )
    log.info("no cache (features.preload is off): encoding each batch on demand, on %s", device)
    return Latents(train, val, encoder, "on demand", 0, time.monotonic() - started)


def check_frames(config: RunConfig, num_frames: int) -> None:
    """
    Raises:
        DataError: a trajectory is too short for one training pair.
    """
    training = config.training
    needed = training.time_stride * training.rollout_horizon + 1
    if num_frames < needed:
        raise DataError(
            f"trajectories have {num_frames} frames; training.time_stride {training.time_stride} "
            f"and rollout_horizon {training.rollout_horizon} need {needed}: lower one of them"
        )


def read_files(
    directory: Path,
    files: Sequence[LatentFile],
    config: RunConfig,
    tier: str,
    stop: threading.Event,
) -> Tensor:
    """(N, T', K, D) as stored, every chunk checked and only every s-th frame kept.

    Several threads read: one alone does not fill a fast disk or a memory bus.

    Raises:
        CacheDamaged: a chunk differs from its checksum.
        Interrupted: `stop` was set.
    """
    stride, dtype = config.training.time_stride, getattr(torch, files[0].dtype)
    _, frames, tokens, dim = files[0].shape
    shape = (sum(f.shape[0] for f in files), -(-frames // stride), tokens, dim)
    on_gpu = tier == "gpu"
    pinned = config.training.pin_memory and on_gpu
    resident = torch.empty(shape, dtype=dtype, device="cuda") if on_gpu else _in_ram(shape, dtype)
    in_place = stride == 1 and not on_gpu
    local = threading.local()

    def work(job: tuple[LatentFile, int, int]) -> None:
        file, chunk, offset = job
        if stop.is_set():
            raise Interrupted("loading the latents was stopped")
        first, end = file.chunk(chunk)
        target = resident[offset + first : offset + end]
        if not in_place and not hasattr(local, "buffer"):
            chunk_shape = (file.chunk_rows, frames, tokens, dim)
            local.buffer = torch.empty(chunk_shape, dtype=dtype, pin_memory=pinned)
            local.stream = torch.cuda.Stream() if on_gpu else None
            if local.stream is not None:  # `resident` may be memory just freed on the default one
                local.stream.wait_stream(torch.cuda.default_stream())
        rows: Tensor = target if in_place else local.buffer[: end - first]
        view = bytes_of(rows)
        path = directory / file.name
        read_exactly(path, view, file.data_offset + first * file.row_bytes)
        store.check_chunk(path, chunk, xxhash.xxh3_64_hexdigest(view), file.checksums[chunk])
        if in_place:
            return
        with torch.cuda.stream(local.stream):
            target.copy_(rows.to(resident.device, non_blocking=True)[:, ::stride])
        if local.stream is not None:
            local.stream.synchronize()

    jobs, offset = [], 0
    for file in files:
        jobs += [(file, chunk, offset) for chunk in range(file.num_chunks)]
        offset += file.shape[0]
    with ThreadPoolExecutor(max(1, config.training.num_workers)) as pool:
        for _ in pool.map(work, jobs):
            pass
    return resident


def _in_ram(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Allocated by NumPy, which asks for huge pages, as PyTorch does not.

    Of a load of 422 MB, clearing small pages was a third of the time: 0.133 s, 0.087 s without.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    return torch.from_numpy(np.empty(num_bytes, np.uint8)).view(dtype).view(shape)


def read_exactly(path: Path, view: memoryview, offset: int) -> None:
    """Fill `view` from the file; a short file raises CacheDamaged."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while view:
            count = os.preadv(fd, [view], offset)
            if count == 0:
                raise CacheDamaged(f"{path} ends {len(view)} bytes early")
            view, offset = view[count:], offset + count
    finally:
        os.close(fd)
