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
from ups.data.sources import Staged, open_file
from ups.errors import CacheDamaged, CacheError, Interrupted
from ups.latents import store
from ups.latents.build import CacheEntry, ensure
from ups.latents.chunks import bytes_of
from ups.latents.datasets import (
    DiskCacheDataset,
    GridLatentPairDataset,
    LatentDataset,
    PreloadedCacheDataset,
)
from ups.latents.encode import PatchEncoder, fit_encoder
from ups.latents.key import ENCODED_SPLITS
from ups.latents.rows import Rows, check_alike, condition_of, ranges_of
from ups.latents.store import LatentFile
from ups.latents.tiers import choose_tier

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Latents:
    """Train and val, ready to be read, and the encoders that turn them back into fields.

    Attributes:
        encoders: task → the encoder of its latents.
        val_ranges: task → where its trajectories are in val.
        tier: `gpu`, `ram`, `disk`, `legacy` or `on demand`.
        num_bytes: read to get there.
    """

    train: LatentDataset
    val: LatentDataset
    encoders: dict[str, PatchEncoder]
    val_ranges: dict[str, range]
    tier: str
    num_bytes: int
    seconds: float
    holds: list[store.InUse] = field(default_factory=list, repr=False)

    def close(self) -> None:
        """Let go of the cache entries, which may then be evicted."""
        while self.holds:
            self.holds.pop().close()


def load(
    config: RunConfig,
    entries: Mapping[str, CacheEntry],
    sources: Mapping[str, Mapping[str, Sequence[Staged]]],
    *,
    device: str,
    stop: threading.Event | None = None,
) -> Latents:
    """Load entries into the best tier, all as one; damaged ones are set aside and rebuilt once.

    Args:
        entries: task → its entry.
        sources: task → the staged sources of each split.
    Raises:
        CacheDamaged: a rebuilt entry is damaged, too.
        DataError: the trajectories of the tasks do not go together.
    """
    try:
        return _load(config, entries, device, stop)
    except CacheError as damage:
        cache_dir = config.training.latent_cache_dir
        aside = [store.quarantine(cache_dir, entry.config_hash) for entry in entries.values()]
        moved = ", ".join(str(path) for path in aside if path is not None) or "nowhere"
        log.warning("%s; moved to %s; building it anew", damage, moved)
    rebuilt: dict[str, CacheEntry] = {}
    for name, alone in config.by_task().items():
        keep = [entry.generation for entry in rebuilt.values()]
        rebuilt[name] = ensure(alone, sources[name], device=device, keep=keep, stop=stop)
    return _load(config, rebuilt, device, stop)


def _load(
    config: RunConfig,
    entries: Mapping[str, CacheEntry],
    device: str,
    stop: threading.Event | None,
) -> Latents:
    started = time.monotonic()
    cache_dir, stride = config.training.latent_cache_dir, config.training.time_stride
    manifests: dict[str, store.Manifest] = {}
    holds: list[store.InUse] = []
    try:
        for name in config.by_task():
            manifests[name], hold = store.hold_current(cache_dir, entries[name].config_hash)
            holds.append(hold)
        num_bytes = sum(manifest.num_bytes for manifest in manifests.values())
        tier, stepped_down = choose_tier(config, num_bytes, device)
        for reason in stepped_down:
            log.warning("%s", reason)
        read = threading.Event() if stop is None else stop
        splits: dict[Split, LatentDataset] = {}
        rows: dict[Split, list[Rows]] = {}
        for split in ENCODED_SPLITS:
            files, rows[split] = _of_split(config, manifests, split)
            check_alike(config, rows[split])
            condition_NC = condition_of(config, rows[split])
            if tier == "disk":
                splits[split] = DiskCacheDataset(files, condition_NC, stride, device)
            else:
                z_NTKD = read_files(files, config, tier, read)
                splits[split] = PreloadedCacheDataset(z_NTKD, condition_NC, device)
    except BaseException:
        for hold in holds:
            hold.close()
        raise
    seconds = time.monotonic() - started
    megabytes = num_bytes / 1e6
    log.info(
        "latents %s in %s: %.0f MB in %.2f s, %.0f MB/s",
        ", ".join(manifest.config_hash for manifest in manifests.values()),
        tier,
        megabytes,
        seconds,
        megabytes / seconds,
    )
    encoders = {name: PatchEncoder.from_manifest(m.encoder) for name, m in manifests.items()}
    val_ranges = ranges_of(rows["val"])
    return Latents(
        splits["train"], splits["val"], encoders, val_ranges, tier, num_bytes, seconds, holds
    )


def _of_split(
    config: RunConfig, manifests: Mapping[str, store.Manifest], split: Split
) -> tuple[list[tuple[Path, LatentFile]], list[Rows]]:
    """The files of a split of all tasks, where they are, and what is in them."""
    files, rows = [], []
    for name, alone in config.by_task().items():
        directory = store.generation_dir(config.training.latent_cache_dir, manifests[name])
        for file in manifests[name].of_split(split):
            files.append((directory / file.name, file))
            rows.append(Rows.of_latents(alone, file))
    return files, rows


def load_on_demand(
    config: RunConfig, sources: Mapping[str, Mapping[str, Sequence[Staged]]], *, device: str
) -> Latents:
    """No cache: the encoders are fitted, and encode each batch when it is asked for."""
    started = time.monotonic()
    by_task = config.by_task()
    readers = {
        split: {
            name: [open_file(alone, s.path, s.rows) for s in sources[name][split]]
            for name, alone in by_task.items()
        }
        for split in ENCODED_SPLITS
    }
    rows = {
        split: [Rows.of_fields(by_task[name], file) for name in of for file in of[name]]
        for split, of in readers.items()
    }
    for of_split in rows.values():
        check_alike(config, of_split)
    encoders = {n: fit_encoder(alone, readers["train"][n]) for n, alone in by_task.items()}
    train, val = (
        GridLatentPairDataset(
            [(readers[split][name], encoders[name].to(device)) for name in by_task],
            condition_of(config, rows[split]),
            config.training.time_stride,
        )
        for split in ENCODED_SPLITS
    )
    log.info("no cache (features.preload is off): encoding each batch on demand, on %s", device)
    seconds = time.monotonic() - started
    return Latents(train, val, encoders, ranges_of(rows["val"]), "on demand", 0, seconds)


def read_files(
    files: Sequence[tuple[Path, LatentFile]],
    config: RunConfig,
    tier: str,
    stop: threading.Event,
) -> Tensor:
    """(N, T', K, D) as stored, every chunk checked and only every s-th frame kept.

    Args:
        files: where each of them is, and what it holds; of one number of frames after the stride.

    Several threads read: one alone does not fill a fast disk or a memory bus.

    Raises:
        CacheDamaged: a chunk differs from its checksum.
        Interrupted: `stop` was set.
    """
    first_file = files[0][1]
    stride, dtype = config.training.time_stride, getattr(torch, first_file.dtype)
    _, frames, tokens, dim = first_file.shape
    shape = (sum(f.shape[0] for _, f in files), -(-frames // stride), tokens, dim)
    # Entries may have been built with different chunks, and have different frames before stride.
    most_bytes = max(f.chunk_rows * f.row_bytes for _, f in files)
    on_gpu = tier == "gpu"
    pinned = config.training.pin_memory and on_gpu
    resident = torch.empty(shape, dtype=dtype, device="cuda") if on_gpu else _in_ram(shape, dtype)
    in_place = stride == 1 and not on_gpu
    local = threading.local()

    def work(job: tuple[Path, LatentFile, int, int]) -> None:
        path, file, chunk, offset = job
        if stop.is_set():
            raise Interrupted("loading the latents was stopped")
        first, end = file.chunk(chunk)
        target = resident[offset + first : offset + end]
        if not in_place and not hasattr(local, "buffer"):
            local.buffer = torch.empty(most_bytes, dtype=torch.uint8, pin_memory=pinned)
            local.stream = torch.cuda.Stream() if on_gpu else None
            if local.stream is not None:  # `resident` may be memory just freed on the default one
                local.stream.wait_stream(torch.cuda.default_stream())
        of_chunk = (end - first, *file.shape[1:])
        rows: Tensor = (
            target
            if in_place
            else local.buffer[: (end - first) * file.row_bytes].view(dtype).view(of_chunk)
        )
        view = bytes_of(rows)
        read_exactly(path, view, file.data_offset + first * file.row_bytes)
        store.check_chunk(path, chunk, xxhash.xxh3_64_hexdigest(view), file.checksums[chunk])
        if in_place:
            return
        with torch.cuda.stream(local.stream):
            target.copy_(rows.to(resident.device, non_blocking=True)[:, ::stride])
        if local.stream is not None:
            local.stream.synchronize()

    jobs, offset = [], 0
    for path, file in files:
        jobs += [(path, file, chunk, offset) for chunk in range(file.num_chunks)]
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
