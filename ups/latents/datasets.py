"""Where the training loop reads latents from: memory, the disk, legacy files, or an encoder.

Every data set answers `batch(index)` with whole trajectories, subsampled by the time stride, so
that the pairs of a batch are views of one tensor: with L = T' - h starts, z0 is `z[:, :L]` and the
targets are `z[:, j : j + L]` for j = 1 … h. Which data set serves a run never changes its batches.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from ups.config import ProblemConfig, RunConfig, Split
from ups.data.pdebench import Frames, TrajectoryFile, locate
from ups.data.sources import check_frames_alike
from ups.errors import CacheDamaged
from ups.files import read_fully
from ups.latents import latent_file, store
from ups.latents.encode import PatchEncoder
from ups.latents.latent_file import LatentFile
from ups.models.conditioning import conditioning

NUMPY_DTYPES = {"float16": np.float16, "bfloat16": np.int16, "float32": np.float32}


class LatentDataset(Protocol):
    """Latents of one split, of all problems, and what conditions the operator on each of them.

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
    """Latents read from the files of the cache, batch by batch.

    The first row that is wanted of a chunk has all of it read and compared with its checksum.
    Nothing is mapped into memory: there, a file that was cut short would be a signal, not an error.

    Args:
        files: as the manifests describe them; open until `close`, whatever becomes of their names.
    """

    index_device = "cpu"

    def __init__(
        self,
        files: Sequence[tuple[Path, LatentFile]],
        condition_NC: Tensor,
        time_stride: int,
        device: str,
    ) -> None:
        self._files, self._dtype = files, files[0][1].dtype
        self._handles = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path, _ in files]
        self._buffer = np.empty(max(f.chunk_rows * f.row_bytes for _, f in files), np.uint8)
        self._checked: set[tuple[int, int]] = set()
        self._stride, self.device = time_stride, device
        self._ends = np.cumsum([f.shape[0] for _, f in files])
        self.condition_NC = condition_NC

    def __len__(self) -> int:
        return int(self._ends[-1])

    def close(self) -> None:
        """Close the files."""
        for handle in self._handles:
            os.close(handle)
        self._handles.clear()

    def batch(self, index_B: Tensor) -> Tensor:
        """(B, T', K, D) as stored.

        Raises:
            CacheDamaged: a chunk is not what was written; its entry is set aside.
        """
        frames, tokens, dim = self._files[0][1].shape[1:]
        shape = (len(index_B), -(-frames // self._stride), tokens, dim)
        batch = np.empty(shape, NUMPY_DTYPES[self._dtype])
        for place, index in enumerate(index_B.tolist()):
            batch[place] = self._read(*locate(self._ends, index))[:: self._stride]
        return torch.from_numpy(batch).view(getattr(torch, self._dtype)).to(self.device)

    def _read(self, which: int, row: int) -> NDArray[Any]:
        """(T, K, D), one row of a file, until the next one is read."""
        path, file = self._files[which]
        chunk = row // file.chunk_rows
        is_new = (which, chunk) not in self._checked
        rows = file.chunk(chunk) if is_new else range(row, row + 1)
        read = self._buffer[: len(rows) * file.row_bytes]
        view, offset = read.data, file.data_offset + rows.start * file.row_bytes
        try:
            if missing := read_fully(self._handles[which], view, offset):
                raise CacheDamaged(f"{path} ends {missing} bytes early")
            if is_new:
                checksum = xxhash.xxh3_64_hexdigest(view)
                latent_file.check_chunk(path, chunk, checksum, file.checksums[chunk])
        except CacheDamaged as damage:
            entry = path.parent.parent
            aside = store.quarantine(entry.parent, entry.name) or "nowhere"
            raise CacheDamaged(
                f"{damage}; moved to {aside}: start again, and the entry is built anew"
            ) from damage
        self._checked.add((which, chunk))
        values = read.view(NUMPY_DTYPES[self._dtype]).reshape(len(rows), *file.shape[1:])
        of_row: NDArray[Any] = values[row - rows.start]
        return of_row


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
        self._ends = np.cumsum([r.num_trajectories for r in self._readers])
        self.condition_NC = condition_NC

    def __len__(self) -> int:
        return int(self._ends[-1])

    def batch(self, index_B: Tensor) -> Tensor:
        frames: dict[PatchEncoder, list[Frames]] = {}
        places: dict[PatchEncoder, list[int]] = {}
        for place, index in enumerate(index_B.tolist()):
            which, row = locate(self._ends, index)
            trajectory = self._readers[which].read(row, row + 1)
            self._readers[which].check_finite(trajectory, row)
            encoder = self._encoders[which]
            frames.setdefault(encoder, []).append(trajectory[0, :: self._stride])
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

    def batch(self, index_B: Tensor) -> Tensor:
        samples = [torch.load(self._paths[i], weights_only=True) for i in index_B.tolist()]
        return torch.stack([s["latent"][:: self._stride] for s in samples]).to(self.device)


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
