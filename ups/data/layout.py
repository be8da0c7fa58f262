"""Write generated trajectories as PDEBench lays its files out, whole or not at all."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import h5py
import torch
from torch import Tensor

from ups.data.initial import cell_centres, draw

Told = Callable[[float], None]  # takes the share of a batch that is done
Solve = Callable[[Tensor, Told | None], Tensor]


@dataclass(frozen=True, slots=True)
class Layout:
    """What a file holds: `num` trajectories of `num_frames` frames, `dt` apart.

    Attributes:
        attributes: of the file: the equation's parameter by PDEBench's name.
    """

    num: int
    num_frames: int
    grid_points: int
    dt: float
    attributes: Mapping[str, float]


def write_trajectories(
    path: Path,
    layout: Layout,
    solve: Solve,
    seed: int,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Solve random trajectories, batch by batch, and write them as one file.

    The file holds `tensor` (N, T, X) float32, contiguous; `x-coordinate` (X,); and `t-coordinate`
    (T + 1,), one more than there are frames, as in PDEBench's own files.

    Args:
        solve: takes the draws of some initial conditions, (B, 11), and returns (B, T, X). What it
            raises ends the writing, and leaves nothing behind.
        progress: told how many trajectories are done.
    """
    generator = torch.Generator().manual_seed(seed)
    t_coordinate = torch.arange(layout.num_frames + 1, dtype=torch.float64) * layout.dt
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with h5py.File(partial, "w") as file:
            file.attrs.update(layout.attributes)
            file["x-coordinate"] = cell_centres(layout.grid_points).float().numpy()
            file["t-coordinate"] = t_coordinate.float().numpy()
            shape = (layout.num, layout.num_frames, layout.grid_points)
            tensor = file.create_dataset("tensor", shape, "<f4")
            for lo in range(0, layout.num, batch_size):
                hi = min(lo + batch_size, layout.num)
                told = None if progress is None else _in_trajectories(progress, lo, hi)
                tensor[lo:hi] = solve(draw(hi - lo, generator), told).cpu().numpy()
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()


def _in_trajectories(progress: Callable[[int], None], lo: int, hi: int) -> Told:
    return lambda share: progress(lo + int(share * (hi - lo)))
