"""Where the training loop reads latents from: memory, a memory map, legacy files, or an encoder.

Every data set answers `batch(index)` with whole trajectories, subsampled by the time stride, so
that the pairs of a batch are views of one tensor: with L = T' - h starts, z0 is `z[:, :L]` and the
targets are `z[:, j : j + L]` for j = 1 … h. Which data set serves a run never changes its batches.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ups.data.pdebench import Frames, TrajectoryFile
from ups.latents.encode import PatchEncoder
from ups.latents.store import LatentFile

NUMPY_DTYPES = {"float16": np.float16, "bfloat16": np.int16, "float32": np.float32}


class LatentDataset(Protocol):
    """Latents of one split, of all tasks, and what conditions the operator on each of them.

    Attributes:
        condition_NC: (N, C) on `index_device`.
        index_device: where indices are looked up: no step waits for one to change sides.
    """

    condition_NC: Tensor
    index_device: str

    def __len__(self) -> int:
        """N, trajectories."""

    def batch(self, index_B: Tensor) -> Tensor:
        """(B, T', K, D) in any float dtype, on the device that the batches are trained on."""


class PreloadedCacheDataset:
    """All latents in RAM or GPU memory: a batch is one gather.

    From RAM to a GPU a batch goes through one of two pinned buffers, so that the copy of one
    overlaps the gather of the next.
    """

    def __init__(self, z_NTKD: Tensor, condition_NC: Tensor, device: str) -> None:
        self.index_device = z_NTKD.device.type
        self.z_NTKD, self.condition_NC = z_NTKD, condition_NC.to(z_NTKD.device)
        self._crosses = device != self.index_device
        self._slots = itertools.cycle([_PinnedSlot(), _PinnedSlot()])

    def __len__(self) -> int:
        return len(self.z_NTKD)

    def batch(self, index_B: Tensor) -> Tensor:
        if self._crosses:
            return next(self._slots).gather(self.z_NTKD, index_B)
        return self.z_NTKD.index_select(0, index_B)


class _PinnedSlot:
    """A pinned buffer for a batch, and the event after which it may be filled again."""

    def __init__(self) -> None:
        self._flat = torch.empty(0)
        self._copied: torch.cuda.Event | None = None

    def gather(self, z_NTKD: Tensor, index_B: Tensor) -> Tensor:
        shape = (len(index_B), *z_NTKD.shape[1:])
        size = torch.Size(shape).numel()
        if self._copied is None or self._flat.numel() < size:
            self._flat = torch.empty(size, dtype=z_NTKD.dtype, pin_memory=True)
            self._copied = torch.cuda.Event()
        self._copied.synchronize()
        pinned = self._flat[:size].view(shape)
        torch.index_select(z_NTKD, 0, index_B, out=pinned)
        on_gpu = pinned.to("cuda", non_blocking=True)
        self._copied.record()
        return on_gpu


class DiskCacheDataset:
    """Latents read from the memory-mapped files of the cache, batch by batch."""

    index_device = "cpu"

    def __init__(
        self,
        files: Sequence[tuple[Path, LatentFile]],
        condition_NC: Tensor,
        time_stride: int,
        device: str,
    ) -> None:
        self._maps = [
            np.memmap(path, NUMPY_DTYPES[f.dtype], "r", offset=f.data_offset, shape=f.shape)
            for path, f in files
        ]
        self._stored = getattr(torch, files[0][1].dtype)
        self._stride, self.device = time_stride, device
        self._ends = np.cumsum([f.shape[0] for _, f in files])
        self.condition_NC = condition_NC

    def __len__(self) -> int:
        return int(self._ends[-1])

    def batch(self, index_B: Tensor) -> Tensor:
        rows = []
        for index in index_B.tolist():
            which = int(np.searchsorted(self._ends, index, side="right"))
            first = int(self._ends[which - 1]) if which else 0
            rows.append(self._maps[which][index - first, :: self._stride])
        return torch.from_numpy(np.stack(rows)).view(self._stored).to(self.device)


class GridLatentPairDataset:
    """Encodes trajectories on demand: slower per batch, and needs no cache.

    Args:
        parts: of each task, the files and the encoder.
    """

    index_device = "cpu"

    def __init__(
        self,
        parts: Sequence[tuple[Sequence[TrajectoryFile], PatchEncoder]],
        condition_NC: Tensor,
        time_stride: int,
    ) -> None:
        self._readers = [reader for readers, _ in parts for reader in readers]
        self._part_of = [i for i, (readers, _) in enumerate(parts) for _ in readers]
        self._encoders = [encoder for _, encoder in parts]
        self._stride = time_stride
        self._ends = np.cumsum([r.num_trajectories for r in self._readers])
        self.condition_NC = condition_NC

    def __len__(self) -> int:
        return int(self._ends[-1])

    def batch(self, index_B: Tensor) -> Tensor:
        frames: dict[int, list[Frames]] = {}
        places: dict[int, list[int]] = {}
        for place, index in enumerate(index_B.tolist()):
            which = int(np.searchsorted(self._ends, index, side="right"))
            row = index - (int(self._ends[which - 1]) if which else 0)
            trajectory = self._readers[which].read(row, row + 1)
            self._readers[which].check_finite(trajectory, row)
            part = self._part_of[which]
            frames.setdefault(part, []).append(trajectory[0, :: self._stride])
            places.setdefault(part, []).append(place)
        encoded = [self._encode(part, np.stack(of_part)) for part, of_part in frames.items()]
        order = torch.tensor([place for of_part in places.values() for place in of_part])
        return torch.cat(encoded)[order.argsort().to(encoded[0].device)]

    def _encode(self, part: int, frames_BTX: Frames) -> Tensor:
        encoder = self._encoders[part]
        return encoder.encode(torch.from_numpy(frames_BTX).to(encoder.device))


class LegacyCacheDataset:
    """The files of legacy mode, one `.pt` per trajectory, read anew for every batch.

    Args:
        directories: one for each task.
    """

    index_device = "cpu"

    def __init__(
        self, directories: Sequence[Path], condition_NC: Tensor, time_stride: int, device: str
    ) -> None:
        self._paths = [path for d in directories for path in sorted(d.glob("sample_*.pt"))]
        self._stride, self.device = time_stride, device
        self.condition_NC = condition_NC

    def __len__(self) -> int:
        return len(self._paths)

    def batch(self, index_B: Tensor) -> Tensor:
        samples = [torch.load(self._paths[i], weights_only=True) for i in index_B.tolist()]
        return torch.stack([s["latent"][:: self._stride] for s in samples]).to(self.device)
