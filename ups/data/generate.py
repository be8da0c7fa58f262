"""Generate random trajectories of an equation, as PDEBench lays its files out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import h5py
import torch

from ups.equations import EQUATIONS, EquationName
from ups.equations.initial_conditions import cell_centres, draw
from ups.files import replacing


def generate(
    path: Path,
    num: int,
    equation: EquationName,
    parameter: float,
    *,
    seed: int,
    grid_points: int = 1024,
    num_frames: int = 201,
    t_end: float = 2.0,
    batch_size: int = 128,
    device: str = "cpu",
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Solve `num` random trajectories, batch by batch, and write them whole or not at all.

    The file holds `tensor` (N, T, X) float32, contiguous; `x-coordinate` (X,); `t-coordinate`
    (T + 1,), one more than there are frames, as in PDEBench's own files; and the parameter as the
    attribute that PDEBench gives it. The seed determines the bytes, the batch size only the memory:
    a batch holds about 1 MB per trajectory at the default sizes.

    Args:
        parameter: of the equation, the same for all trajectories.
        progress: takes how many trajectories are done; what it raises leaves nothing behind.
    """

    def note(lo: int, hi: int, share: float) -> None:
        progress(lo + int(share * (hi - lo)))

    generator, dt = torch.Generator().manual_seed(seed), t_end / (num_frames - 1)
    t_coordinate = torch.arange(num_frames + 1, dtype=torch.float64) * dt
    with replacing(path) as aside, h5py.File(aside.name, "w", locking=False) as file:
        file.attrs[EQUATIONS[equation].attribute] = parameter
        file["x-coordinate"] = cell_centres(grid_points).float().numpy()
        file["t-coordinate"] = t_coordinate.float().numpy()
        tensor = file.create_dataset("tensor", (num, num_frames, grid_points), "<f4")
        for lo in range(0, num, batch_size):
            hi = min(lo + batch_size, num)
            u_NTX = EQUATIONS[equation].solve(
                draw(hi - lo, generator),
                parameter,
                t_coordinate[:-1],
                grid_points,
                device=device,
                progress=partial(note, lo, hi),
            )
            tensor[lo:hi] = u_NTX.cpu().numpy()
