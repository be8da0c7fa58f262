"""Advection: u_t + β u_x = 0 on [0, 1], periodic.

The data follow PDEBench's description (Takamoto et al. 2022): the same equation, grid, saved times
and random initial conditions. The solution is exact: what the initial condition's formula says at
x − βt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ups.equations.equation import Equation

if TYPE_CHECKING:
    from torch import Tensor


def scale(beta_N: Tensor) -> Tensor:
    """β from 0.1 to 7 → a feature of order one."""
    return beta_N.log10()


def solve(
    draws: Tensor,
    beta: float,
    t_T: Tensor,
    grid_points: int,
    *,
    device: str = "cpu",  # noqa: ARG001 (a formula: on the CPU it takes no time)
    progress: Callable[[float], None] | None = None,
) -> Tensor:
    """u0(x − βt): see `Solve`; β is the speed, in domains per unit of time."""
    import torch

    from ups.equations.initial_conditions import cell_centres, evaluate

    x, times = cell_centres(grid_points), t_T.tolist()
    u_NTX = torch.empty(len(draws), len(times), grid_points)
    for frame, t in enumerate(times):
        u_NTX[:, frame] = evaluate(draws, (x - beta * t) % 1.0)
        if progress is not None:
            progress((frame + 1) / len(times))
    return u_NTX


ADVECTION = Equation(
    name="advection1d",
    formula="u_t + β u_x = 0",
    parameter="beta",
    symbol="β",
    attribute="beta",
    conserves_mean=True,
    scale=scale,
    solve=solve,
)
