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

from ups.data.pdebench import TrajectoryFile
from ups.latents.encode import PatchEncoder
from ups.latents.store import LatentFile

NUMPY_DTYPES = {"float16": np.float16, "bfloat16": np.int16, "float32": np.float32}


class LatentDataset(Protocol):
    """Latents of one split, and the parameters that condition the operator.

    Attributes:
        nu_N: (N,) on `index_device`.
        index_device: where indices are looked up: no step waits for one to change sides.
    """

    nu_N: Tensor
    step_dt: float
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

    def __init__(self, z_NTKD: Tensor, nu_N: Tensor, step_dt: float, device: str) -> None:
        self.index_device = z_NTKD.device.type
        self.z_NTKD, self.nu_N, self.step_dt = z_NTKD, nu_N.to(z_NTKD.device), step_dt
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
        self, directory: Path, files: Sequence[LatentFile], time_stride: int, device: str
    ) -> None:
        self._maps = [
            np.memmap(
                directory / f.name, NUMPY_DTYPES[f.dtype], "r", offset=f.data_offset, shape=f.shape
            )
            for f in files
        ]
        self._stored = getattr(torch, files[0].dtype)
        self._stride, self.device = time_stride, device
        self._ends = np.cumsum([f.shape[0] for f in files])
        self.nu_N = nu_of(files)
        self.step_dt = files[0].dt * time_stride

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
    """Encodes trajectories on demand: slower per batch, and needs no cache."""

    index_device = "cpu"

    def __init__(
        self, readers: Sequence[TrajectoryFile], encoder: PatchEncoder, time_stride: int
    ) -> None:
        self._readers, self._encoder, self._stride = readers, encoder, time_stride
        self._ends = np.cumsum([r.num_trajectories for r in readers])
        self.nu_N = torch.cat([torch.full((r.num_trajectories,), r.nu) for r in readers])
        self.step_dt = readers[0].dt * time_stride

    def __len__(self) -> int:
        return int(self._ends[-1])

    def batch(self, index_B: Tensor) -> Tensor:
        frames = []
        for index in index_B.tolist():
            which = int(np.searchsorted(self._ends, index, side="right"))
            row = index - (int(self._ends[which - 1]) if which else 0)
            trajectory = self._readers[which].read(row, row + 1)
            self._readers[which].check_finite(trajectory, row)
            frames.append(trajectory[0, :: self._stride])
        return self._encoder.encode(torch.from_numpy(np.stack(frames)).to(self._encoder.device))


class LegacyCacheDataset:
    """The files of legacy mode, one `.pt` per trajectory, read anew for every batch."""

    index_device = "cpu"

    def __init__(
        self, directory: Path, nu_N: Tensor, dt: float, time_stride: int, device: str
    ) -> None:
        self._paths = sorted(directory.glob("sample_*.pt"))
        self._stride, self.device = time_stride, device
        self.nu_N, self.step_dt = nu_N, dt * time_stride

    def __len__(self) -> int:
        return len(self._paths)

    def batch(self, index_B: Tensor) -> Tensor:
        samples = [torch.load(self._paths[i], weights_only=True) for i in index_B.tolist()]
        return torch.stack([s["latent"][:: self._stride] for s in samples]).to(self.device)


def nu_of(files: Sequence[LatentFile]) -> Tensor:
    """(N,) ν of each trajectory."""
    return torch.cat([torch.full((f.shape[0],), f.nu) for f in files])
