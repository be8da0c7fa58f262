"""Where the training loop reads latents from: memory, a memory map, legacy files, or an encoder.

Every data set answers `batch(index)` with whole trajectories, subsampled by the time stride, so
that the pairs of a batch are views of one tensor: with L = T' - h starts, z0 is `z[:, :L]` and the
targets are `z[:, j : j + L]` for j = 1 … h. Which data set serves a run never changes its batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ups.data.pdebench import TrajectoryFile, check_finite
from ups.latents.encode import PatchEncoder
from ups.latents.store import LatentFile

NUMPY_DTYPES = {"float16": np.float16, "bfloat16": np.int16, "float32": np.float32}


class LatentDataset(Protocol):
    """Latents of one split, and the parameters that condition the operator."""

    nu_N: Tensor
    step_dt: float

    def __len__(self) -> int:
        """N, trajectories."""

    def batch(self, index_B: Tensor) -> Tensor:
        """(B, T', K, D) in any float dtype, on the device that the batches are trained on."""


class PreloadedCacheDataset:
    """All latents in RAM or GPU memory: a batch is one gather."""

    def __init__(self, z_NTKD: Tensor, nu_N: Tensor, step_dt: float, device: str) -> None:
        self.z_NTKD, self.nu_N, self.step_dt = z_NTKD, nu_N, step_dt
        self.device = device

    def __len__(self) -> int:
        return len(self.z_NTKD)

    def batch(self, index_B: Tensor) -> Tensor:
        return self.z_NTKD[index_B.to(self.z_NTKD.device)].to(self.device, non_blocking=True)


class DiskCacheDataset:
    """Latents read from the memory-mapped files of the cache, batch by batch."""

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
        self.nu_N = nu_of(files).to(device)
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

    def __init__(
        self, readers: Sequence[TrajectoryFile], encoder: PatchEncoder, time_stride: int
    ) -> None:
        self._readers, self._encoder, self._stride = readers, encoder, time_stride
        self._ends = np.cumsum([r.num_trajectories for r in readers])
        self.nu_N = torch.cat([torch.full((r.num_trajectories,), r.nu) for r in readers])
        self.nu_N = self.nu_N.to(encoder.device)
        self.step_dt = readers[0].dt * time_stride

    def __len__(self) -> int:
        return int(self._ends[-1])

    def batch(self, index_B: Tensor) -> Tensor:
        frames = []
        for index in index_B.tolist():
            which = int(np.searchsorted(self._ends, index, side="right"))
            row = index - (int(self._ends[which - 1]) if which else 0)
            trajectory = self._readers[which].read(row, row + 1)
            check_finite(trajectory, self._readers[which].path, row)
            frames.append(trajectory[0, :: self._stride])
        return self._encoder.encode(torch.from_numpy(np.stack(frames)).to(self._encoder.device))


class LegacyCacheDataset:
    """The files of legacy mode, one `.pt` per trajectory, read anew for every batch."""

    def __init__(self, directory: Path, dt: float, time_stride: int, device: str) -> None:
        self._paths = sorted(directory.glob("sample_*.pt"))
        self._stride, self.device = time_stride, device
        self.nu_N = torch.tensor([self._load(p)["params"]["nu"] for p in self._paths])
        self.nu_N = self.nu_N.to(device)
        self.step_dt = dt * time_stride

    def __len__(self) -> int:
        return len(self._paths)

    def batch(self, index_B: Tensor) -> Tensor:
        samples = [self._load(self._paths[i])["latent"] for i in index_B.tolist()]
        return torch.stack([z[:: self._stride] for z in samples]).to(self.device)

    def _load(self, path: Path) -> dict[str, Any]:
        sample: dict[str, Any] = torch.load(path, weights_only=True)
        return sample


def nu_of(files: Sequence[LatentFile]) -> Tensor:
    """(N,) ν of each trajectory."""
    return torch.cat([torch.full((f.shape[0],), f.nu) for f in files])
