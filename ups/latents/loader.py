"""Put a cache entry where the training loop reads it fastest: copied and checked, or mapped."""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from ups.background import in_context
from ups.config import RunConfig, Split
from ups.data.sources import Staged, open_files
from ups.errors import CacheDamaged, CacheError, Interrupted
from ups.files import read_fully
from ups.latents import latent_file, store
from ups.latents.arrival import Arrival
from ups.latents.board import SharedLatents
from ups.latents.build import CacheEntry, ensure
from ups.latents.chunks import bytes_of
from ups.latents.datasets import (
    GridLatentPairDataset,
    LatentDataset,
    PreloadedCacheDataset,
    Rows,
    check_alike,
    condition_of,
    ranges_of,
)
from ups.latents.encode import PatchEncoder, fit_encoder
from ups.latents.key import ENCODED_SPLITS, key_fields
from ups.latents.latent_file import LatentFile
from ups.latents.on_disk import DiskCacheDataset, MappedCacheDataset
from ups.latents.partly_resident import keep_part
from ups.latents.tiers import choose_tier, is_mapped
from ups.trace import noted
from ups.units import format_size

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Latents:
    """Train and val, ready to be read, and the encoders that turn them back into fields.

    Attributes:
        encoders: problem → the encoder of its latents.
        key_fields: problem → what its cache key is made of.
        train_rows: the trajectories of train, file by file.
        val_ranges: problem → where its trajectories are in val.
        tier: `gpu`, `ram`, `disk`, `legacy` or `on demand`.
        num_bytes: read to get there; 0 where they are read when wanted.
        arrival: what is there of them, where some still are on their way; else None.
        fetches: problem → what brought the bytes that they are made of, see `Build`.
        shared: how ranks of this machine open them, where they come in memory that they share.
    """

    train: LatentDataset
    val: LatentDataset
    encoders: dict[str, PatchEncoder]
    key_fields: dict[str, dict[str, Any]]
    train_rows: Sequence[Rows]
    val_ranges: dict[str, range]
    tier: str
    num_bytes: int
    seconds: float
    arrival: Arrival | None = None
    fetches: dict[str, list[str]] = field(default_factory=dict)
    shared: SharedLatents | None = None
    holds: ExitStack = field(default_factory=ExitStack, repr=False)

    def close(self) -> None:
        """Let go of the cache entries, which may then be evicted."""
        self.holds.close()


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
        entries: problem → its entry.
        sources: problem → the staged sources of each split.
    Raises:
        CacheDamaged: a rebuilt entry is damaged, too.
        DataError: the trajectories of the problems do not go together.
    """
    try:
        return _load(config, entries, device, stop)
    except CacheError as damage:
        cache_dir = config.training.latent_cache_dir
        aside = [store.quarantine(cache_dir, entry.config_hash) for entry in entries.values()]
        moved = ", ".join(str(path) for path in aside if path is not None) or "nowhere"
        log.warning("%s; moved to %s; building it anew", damage, moved)
    rebuilt: dict[str, CacheEntry] = {}
    for name, own_config in config.by_problem().items():
        keep = [entry.generation for entry in rebuilt.values()]
        rebuilt[name] = ensure(own_config, sources[name], device=device, keep=keep, stop=stop)
    return _load(config, rebuilt, device, stop)


def _load(
    config: RunConfig, entries: Mapping[str, CacheEntry], device: str, stop: threading.Event | None
) -> Latents:
    started = time.monotonic()
    cache_dir, stride = config.training.latent_cache_dir, config.training.time_stride
    manifests: dict[str, store.Manifest] = {}
    files: dict[Split, list[tuple[Path, LatentFile]]] = {split: [] for split in ENCODED_SPLITS}
    rows: dict[Split, list[Rows]] = {split: [] for split in ENCODED_SPLITS}
    with ExitStack() as holds:
        for name, own_config in config.by_problem().items():
            manifest, hold = store.hold_current(cache_dir, entries[name].config_hash)
            manifests[name] = manifest
            holds.callback(hold.close)
            for split in ENCODED_SPLITS:
                for file in manifest.of_split(split):
                    path = store.generation_dir(cache_dir, manifest) / file.name
                    files[split].append((path, file))
                    rows[split].append(Rows.of_latents(own_config, file))
        check_alike(config, rows)
        num_bytes = sum(manifest.num_bytes for manifest in manifests.values())
        tier, stepped_down, kept_mb = choose_tier(config, num_bytes, device)
        for reason in stepped_down:
            log.warning("%s", reason)
        mapped = is_mapped(config, tier, num_bytes, device)
        num_read = 0 if mapped or tier == "disk" else num_bytes

        def open_split(split: Split, condition_NC: Tensor) -> LatentDataset:
            if tier == "disk":
                on_disk = DiskCacheDataset(files[split], condition_NC, stride, device)
                holds.callback(on_disk.close)
                return on_disk
            if mapped:
                in_map = MappedCacheDataset(files[split], condition_NC, stride)
                holds.callback(in_map.close)
                return in_map
            z_NTKD = read_files(files[split], config, tier == "gpu", stop or threading.Event())
            return PreloadedCacheDataset(z_NTKD, condition_NC, device)

        encoders = {name: PatchEncoder.from_manifest(m.encoder) for name, m in manifests.items()}
        fields = {name: manifest.key_fields for name, manifest in manifests.items()}
        latents = assemble(config, rows, open_split, encoders, fields, tier, started, num_read)
        latents.train = keep_part(config, latents.train, kept_mb, device)
        latents.fetches = {name: list(manifest.fetches) for name, manifest in manifests.items()}
        latents.holds = holds.pop_all()
    keys = ", ".join(manifest.config_hash for manifest in manifests.values())
    size, seconds = format_size(num_bytes), latents.seconds
    how = f"{num_bytes / 1e6 / seconds:.0f} MB/s" if num_read else "read when wanted"
    log.info("latents %s in %s: %s in %.2f s, %s", keys, tier, size, seconds, how)
    return latents


def assemble(
    config: RunConfig,
    rows: Mapping[Split, Sequence[Rows]],
    open_split: Callable[[Split, Tensor], LatentDataset],
    encoders: dict[str, PatchEncoder],
    fields: dict[str, dict[str, Any]],
    tier: str,
    started: float,
    num_bytes: int = 0,
) -> Latents:
    """The latents of trajectories that go together.

    Args:
        rows: what is in each split, as `check_alike` lets it pass.
        open_split: makes a split's data set from its conditioning, (N, C).
        started: time.monotonic() at which the load began.
    """
    train, val = (open_split(split, condition_of(config, rows[split])) for split in ENCODED_SPLITS)
    seconds = time.monotonic() - started
    ranges = ranges_of(rows["val"])
    return Latents(train, val, encoders, fields, rows["train"], ranges, tier, num_bytes, seconds)


def load_on_demand(
    config: RunConfig, sources: Mapping[str, Mapping[str, Sequence[Staged]]], *, device: str
) -> Latents:
    """No cache: the encoders are fitted, and encode each batch when it is asked for."""
    started = time.monotonic()
    by_problem = config.by_problem()
    readers = {
        split: {n: open_files(own, sources[n][split]) for n, own in by_problem.items()}
        for split in ENCODED_SPLITS
    }
    rows = {
        split: [Rows.of_fields(by_problem[name], file) for name in of for file in of[name]]
        for split, of in readers.items()
    }
    check_alike(config, rows)
    encoders = {n: fit_encoder(own, readers["train"][n]) for n, own in by_problem.items()}

    def open_split(split: Split, condition_NC: Tensor) -> LatentDataset:
        problems = [(readers[split][name], encoders[name].to(device)) for name in by_problem]
        return GridLatentPairDataset(problems, condition_NC, config.training.time_stride)

    log.info("no cache (features.preload is off): encoding each batch on demand, on %s", device)
    fields = {name: key_fields(own, sources[name]) for name, own in by_problem.items()}
    return assemble(config, rows, open_split, encoders, fields, "on demand", started)


def read_files(
    files: Sequence[tuple[Path, LatentFile]], config: RunConfig, on_gpu: bool, stop: threading.Event
) -> Tensor:
    """(N, T', K, D) as stored, every chunk checked and only every s-th frame kept.

    Args:
        files: where each of them is, and what it holds; of one number of frames after the stride.
        on_gpu: into GPU memory, else into RAM.

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
    most_kept_bytes = max(f.chunk_rows for _, f in files) * math.prod(shape[1:]) * dtype.itemsize
    loaded = in_gpu(shape, dtype) if on_gpu else in_ram(shape, dtype)
    local = threading.local()

    def work(job: tuple[Path, LatentFile, int, int]) -> None:
        path, file, chunk, offset = job
        if stop.is_set():
            raise Interrupted("loading the latents was stopped")
        with noted("load", file=file.name, chunk=chunk):
            load_chunk(path, file, chunk, offset)

    def load_chunk(path: Path, file: LatentFile, chunk: int, offset: int) -> None:
        in_file = file.chunk(chunk)
        target = loaded[offset + in_file.start : offset + in_file.stop]
        if on_gpu and not hasattr(local, "upload"):
            local.upload = _Upload(most_kept_bytes, config.training.pin_memory)
        if stride > 1 and not hasattr(local, "buffer"):
            local.buffer = torch.empty(most_bytes, dtype=torch.uint8)
        on_host = local.upload.buffer_for(target) if on_gpu else target
        rows = on_host
        if stride > 1:
            stored = local.buffer[: len(in_file) * file.row_bytes].view(dtype)
            rows = stored.view(len(in_file), *file.shape[1:])
        view = bytes_of(rows)
        read_exactly(path, view, file.data_offset + in_file.start * file.row_bytes)
        latent_file.check_chunk(path, chunk, xxhash.xxh3_64_hexdigest(view), file.checksums[chunk])
        if stride > 1:
            on_host.copy_(rows[:, ::stride])
        if on_gpu:
            local.upload.send(on_host, target)

    jobs, offset = [], 0
    for path, file in files:
        jobs += [(path, file, chunk, offset) for chunk in range(file.num_chunks)]
        offset += file.shape[0]
    try:
        with ThreadPoolExecutor(max(1, config.training.num_workers)) as pool:
            for _ in pool.map(in_context(work), jobs):
                pass
    finally:
        if on_gpu:  # also where it fails: nothing is written to memory that others then have
            torch.cuda.synchronize()
    return loaded


class _Upload:
    """Brings what one thread has read to the GPU, through two pinned buffers in turn.

    So one chunk crosses while the next is read, and of each only what is kept.
    """

    def __init__(self, most_bytes: int, pinned: bool) -> None:
        buffers = [torch.empty(most_bytes, dtype=torch.uint8, pin_memory=pinned) for _ in range(2)]
        self._slots = itertools.cycle([(buffer, torch.cuda.Event()) for buffer in buffers])
        self._stream = torch.cuda.Stream()
        # The target may be memory that was just freed on the default one.
        self._stream.wait_stream(torch.cuda.default_stream())

    def buffer_for(self, target: Tensor) -> Tensor:
        """A buffer as large as `target`, of which nothing is left to cross."""
        buffer, self._crossed = next(self._slots)
        self._crossed.synchronize()
        return buffer[: target.nbytes].view(target.dtype).view(target.shape)

    def send(self, rows: Tensor, target: Tensor) -> None:
        """Begin to copy rows that are in the last buffer."""
        with torch.cuda.stream(self._stream):
            target.copy_(rows, non_blocking=True)
            self._crossed.record()


def resident(config: RunConfig, rows: Sequence[Rows], *, on_gpu: bool) -> Tensor:
    """(N, T', K, D) of all these trajectories, to be filled."""
    shape, dtype = shape_of(config, rows)
    return in_gpu(shape, dtype) if on_gpu else in_ram(shape, dtype)


def shape_of(config: RunConfig, rows: Sequence[Rows]) -> tuple[tuple[int, ...], torch.dtype]:
    """(N, T', K, D) of the latents of all these trajectories, and their type."""
    frames = -(-rows[0].num_frames // config.training.time_stride)
    shape = (sum(r.num for r in rows), frames, config.latent.tokens, config.latent.dim)
    return shape, getattr(torch, config.training.latent_cache_dtype)


def in_gpu(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """In GPU memory, as it comes."""
    return torch.empty(shape, dtype=dtype, device="cuda")


def in_ram(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Allocated by NumPy, which asks for huge pages, as PyTorch does not.

    Of a load of 422 MB, clearing small pages was a third of the time: 0.133 s, 0.087 s without.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    return torch.from_numpy(np.empty(num_bytes, np.uint8)).view(dtype).view(shape)


def read_exactly(path: Path, view: memoryview, offset: int) -> None:
    """Fill `view` from the file.

    Raises:
        CacheDamaged: the file is shorter.
    """
    with path.open("rb", buffering=0) as file:
        if missing := read_fully(file.fileno(), view, offset):
            raise CacheDamaged(f"{path} ends {missing} bytes early")
