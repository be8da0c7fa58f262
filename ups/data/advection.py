"""Advected trajectories: u_t + β u_x = 0 on [0, 1], periodic.

The data follow PDEBench's description (Takamoto et al. 2022): the same equation, grid, saved times
and random initial conditions, in the same HDF5 layout. The solution is exact: what the initial
condition's formula says at x − βt.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Event

import torch
from torch import Tensor

from ups.data.initial import cell_centres, evaluate
from ups.data.layout import Layout, write_trajectories
from ups.errors import Interrupted


def solve(
    draws: Tensor,
    beta: float,
    t_T: Tensor,
    grid_points: int,
    *,
    stop: Event | None = None,
    progress: Callable[[float], None] | None = None,
) -> Tensor:
    """u0(x − βt) at the cell centres and the times t_T.

    Args:
        draws: (N, 11), of `ups.data.initial.draw`: they determine u0.
        beta: β, the speed, in domains per unit of time.
        t_T: (T,), times.
        progress: told the share that is done, after each saved time.
    Returns:
        (N, T, X) float32.
    Raises:
        Interrupted: `stop` was set.
    """
    x, times = cell_centres(grid_points), t_T.tolist()
    u_NTX = torch.empty(len(draws), len(times), grid_points)
    for frame, t in enumerate(times):
        if stop is not None and stop.is_set():
            raise Interrupted(f"stopped at saved time {frame} of {len(times)}")
        u_NTX[:, frame] = evaluate(draws, (x - beta * t) % 1.0)
        if progress is not None:
            progress((frame + 1) / len(times))
    return u_NTX


def generate(
    path: Path,
    num: int,
    *,
    beta: float,
    seed: int,
    grid_points: int = 1024,
    num_frames: int = 201,
    t_end: float = 2.0,
    batch_size: int = 128,
    stop: Event | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write `num` random trajectories in PDEBench's layout, with β as the attribute `beta`.

    The seed determines the bytes, the batch size only the memory.

    Args:
        progress: told how many trajectories are done.
    Raises:
        Interrupted: `stop` was set; nothing is left behind.
    """
    dt = t_end / (num_frames - 1)
    t_T = torch.arange(num_frames, dtype=torch.float64) * dt

    def solve_batch(draws: Tensor, told: Callable[[float], None] | None) -> Tensor:
        return solve(draws, beta, t_T, grid_points, stop=stop, progress=told)

    layout = Layout(num, num_frames, grid_points, dt, {"beta": beta})
    write_trajectories(path, layout, solve_batch, seed, batch_size, progress)
