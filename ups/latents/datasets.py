"""Where the training loop reads latents from: memory, the disk, legacy files, or an encoder.

Every data set answers `batch(index)` with whole trajectories, subsampled by the time stride, so
that the pairs of a batch are views of one tensor: with L = T' - h starts, z0 is `z[:, :L]` and the
targets are `z[:, j : j + L]` for j = 1 … h. `batch(index, frames)` picks frames of each of them.
Which data set serves a run never changes what its batches are of.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ups.config import ProblemConfig, RunConfig, Split
from ups.data.frames import check_frames_alike
from ups.data.pdebench import Frames, TrajectoryFile, locate
from ups.latents.encode import PatchEncoder
from ups.latents.latent_file import LatentFile
from ups.models.conditioning import conditioning


class LatentDataset(Protocol):
    """Latents of one split, of all problems, and what conditions the operator on each of them.

    Attributes:
        condition_NC: (N, C) on `index_device`.
        index_device: where indices are looked up: no step waits for one to change sides.
    """

    condition_NC: Tensor
    index_device: str

    @property
    def num_frames(self) -> int:
        """T', of a trajectory after the time stride."""

    def __len__(self) -> int:
        """N, trajectories."""

    def batch(self, index_B: Tensor, frames_BF: Tensor | None = None) -> Tensor:
        """(B, F, K, D) in any float dtype, on the device that the batches are trained on.

        Args:
            frames_BF: (B, F), which frames of each trajectory; default all T'.
        """


class PreloadedCacheDataset:
    """All latents in RAM or GPU memory: a batch is one gather.

    From RAM to a GPU a batch goes through one of two pinned buffers, so that the copy of one
    overlaps the gather of the next.
    """

    def __init__(self, z_NTKD: Tensor, condition_NC: Tensor, device: str) -> None:
        self.index_device = z_NTKD.device.type
        self.z_NTKD, self.condition_NC = z_NTKD, condition_NC.to(z_NTKD.device)
        self.num_frames = z_NTKD.shape[1]
        self._crosses = device != self.index_device
        self._slots = itertools.cycle([_PinnedSlot(), _PinnedSlot()])

    def __len__(self) -> int:
        return len(self.z_NTKD)

    def batch(self, index_B: Tensor, frames_BF: Tensor | None = None) -> Tensor:
        if frames_BF is None:
            return self._gather(self.z_NTKD, index_B)
        places = (index_B[:, None] * self.num_frames + frames_BF).flatten()
        return self._gather(self.z_NTKD.flatten(0, 1), places).view(
            *frames_BF.shape, *self.z_NTKD.shape[2:]
        )

    def _gather(self, z: Tensor, index: Tensor) -> Tensor:
        return next(self._slots).gather(z, index) if self._crosses else z.index_select(0, index)


class _PinnedSlot:
    """A pinned buffer for a batch, and the event after which it may be filled again."""

    def __init__(self) -> None:
        self._flat = torch.empty(0)
        self._copied: torch.cuda.Event | None = None

    def gather(self, z: Tensor, index: Tensor) -> Tensor:
        """`z[index]`, on the GPU."""
        shape = (len(index), *z.shape[1:])
        size = torch.Size(shape).numel()
        if self._copied is None or self._flat.numel() < size:
            self._flat = torch.empty(size, dtype=z.dtype, pin_memory=True)
            self._copied = torch.cuda.Event()
        self._copied.synchronize()
        pinned = self._flat[:size].view(shape)
        torch.index_select(z, 0, index, out=pinned)
        on_gpu = pinned.to("cuda", non_blocking=True)
        self._copied.record()
        return on_gpu


class GridLatentPairDataset:
    """Encodes trajectories on demand: slower per batch, and needs no cache.

    Args:
        problems: of each, the files and the encoder.
    """

    index_device = "cpu"

    def __init__(
        self,
        problems: Sequence[tuple[Sequence[TrajectoryFile], PatchEncoder]],
        condition_NC: Tensor,
        time_stride: int,
    ) -> None:
        self._readers = [reader for readers, _ in problems for reader in readers]
        self._encoders = [encoder for readers, encoder in problems for _ in readers]
        self._stride = time_stride
        self.num_frames = -(-self._readers[0].num_frames // time_stride)
        self._ends = np.cumsum([r.num_trajectories for r in self._readers])
        self.condition_NC = condition_NC

    def __len__(self) -> int:
        return int(self._ends[-1])

    def batch(self, index_B: Tensor, frames_BF: Tensor | None = None) -> Tensor:
        frames: dict[PatchEncoder, list[Frames]] = {}
        places: dict[PatchEncoder, list[int]] = {}
        for place, index in enumerate(index_B.tolist()):
            which, row = locate(self._ends, index)
            trajectory = self._readers[which].read(row, row + 1)
            self._readers[which].check_finite(trajectory, row)
            encoder = self._encoders[which]
            strided = trajectory[0, :: self._stride]
            wanted = strided if frames_BF is None else strided[frames_BF[place].numpy()]
            frames.setdefault(encoder, []).append(wanted)
            places.setdefault(encoder, []).append(place)
        encoded = [
            encoder.encode(torch.from_numpy(np.stack(of_encoder)).to(encoder.device))
            for encoder, of_encoder in frames.items()
        ]
        order = torch.tensor([place for of_encoder in places.values() for place in of_encoder])
        return torch.cat(encoded)[order.argsort().to(encoded[0].device)]


class LegacyCacheDataset:
    """The files of legacy mode, one `.pt` per trajectory, read anew for every batch.

    Args:
        directories: one for each problem.
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

    @cached_property
    def num_frames(self) -> int:
        return len(self._load(0))

    def batch(self, index_B: Tensor, frames_BF: Tensor | None = None) -> Tensor:
        samples = [self._load(index) for index in index_B.tolist()]
        if frames_BF is not None:
            samples = [z_TKD[frames] for z_TKD, frames in zip(samples, frames_BF, strict=True)]
        return torch.stack(samples).to(self.device)

    def _load(self, index: int) -> Tensor:
        """(T', K, D)."""
        latent: Tensor = torch.load(self._paths[index], weights_only=True)["latent"]
        return latent[:: self._stride]


@dataclass(frozen=True, slots=True)
class Rows:
    """The trajectories of one file, and what they have in common."""

    problem: str
    equation: str
    num: int
    num_frames: int
    dt: float
    parameter: float

    @classmethod
    def of_latents(cls, config: ProblemConfig, file: LatentFile) -> Rows:
        """The trajectories of an encoded file of the problem of `config`."""
        problem, (num, num_frames, _, _) = config.problem, file.shape
        (parameter,) = file.parameters.values()
        return cls(problem.name, problem.equation, num, num_frames, file.dt, parameter)

    @classmethod
    def of_fields(cls, config: ProblemConfig, file: TrajectoryFile) -> Rows:
        """The trajectories of a file of the problem of `config` that is not encoded."""
        problem = config.problem
        sizes = file.num_trajectories, file.num_frames
        return cls(problem.name, problem.equation, *sizes, file.dt, file.parameter)


def condition_of(config: RunConfig, rows: Sequence[Rows]) -> Tensor:
    """(N, C) float32, what conditions the operator on each of the trajectories."""
    stride, equations = config.training.time_stride, config.data.equations
    return torch.cat(
        [
            conditioning(equations, r.equation, torch.full((r.num,), r.parameter), r.dt * stride)
            for r in rows
        ]
    )


def ranges_of(rows: Sequence[Rows]) -> dict[str, range]:
    """Problem → where its trajectories are among all of them."""
    ranges: dict[str, range] = {}
    end = 0
    for r in rows:
        first = ranges[r.problem].start if r.problem in ranges else end
        end += r.num
        ranges[r.problem] = range(first, end)
    return ranges


def check_alike(config: RunConfig, rows: Mapping[Split, Sequence[Rows]]) -> None:
    """Refuse splits with trajectories that one batch could not hold together.

    Raises:
        DataError: they have not, after the time stride, or are too short for one training pair.
    """
    for of_split in rows.values():
        check_frames_alike(config, [(r.problem, r.num_frames) for r in of_split])
