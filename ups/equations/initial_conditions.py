"""The random initial conditions of PDEBench's 1-D data sets, for any equation on [0, 1], periodic.

Grid: values are those at the cell centres x_i = (i + 1/2) / X.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

NUM_DRAWS = 11  # random numbers that make one initial condition
NUM_MODES = 4
WINDOW_EDGE = 0.01  # width of the tanh at either end of a window, in units of the domain


def cell_centres(grid_points: int) -> Tensor:
    """(X,) float64, in units of the domain."""
    return (torch.arange(grid_points, dtype=torch.float64) + 0.5) / grid_points


def initial_conditions(num: int, grid_points: int, generator: torch.Generator) -> Tensor:
    """`draw` and `evaluate` in one, at the cell centres: (N, X) float64."""
    return evaluate(draw(num, generator), cell_centres(grid_points))


def draw(num: int, generator: torch.Generator) -> Tensor:
    """What determines `num` initial conditions, (N, 11) uniform on [0, 1).

    Args:
        generator: on the CPU. Each trajectory takes the same number of draws, so that two calls
            for 3 and 5 give the trajectories of one call for 8.
    """
    return torch.rand(num, NUM_DRAWS, generator=generator, dtype=torch.float64)


def evaluate(draws: Tensor, x: Tensor) -> Tensor:
    """Random initial conditions, as PDEBench describes them.

    u0 = Σ A_i sin(2π k_i x + φ_i), two modes: k_i from 1..4 independently, A_i ~ U(0, 1),
    φ_i ~ U(0, 2π). One in ten becomes ±|u0|; independently, one in ten is multiplied by a smooth
    window whose ends are drawn from (0.1, 0.45) and (0.55, 0.9).

    Args:
        draws: (N, 11), of `draw`.
        x: (X,) float64 in [0, 1).
    Returns:
        (N, X) float64.
    """
    u = torch.zeros(len(draws), len(x), dtype=torch.float64)
    for i in range(2):
        mode = (NUM_MODES * draws[:, i : i + 1]).floor() + 1
        amplitude, turns = draws[:, 2 + i : 3 + i], draws[:, 4 + i : 5 + i]
        u += amplitude * torch.sin(2 * math.pi * (mode * x + turns))
    is_absolute, is_negative, is_windowed = (draws[:, i : i + 1] for i in (6, 7, 8))
    sign = 1.0 - 2.0 * (is_negative < 0.5)
    u = torch.where(is_absolute < 0.1, sign * u.abs(), u)
    left, right = 0.1 + 0.35 * draws[:, 9:10], 0.55 + 0.35 * draws[:, 10:11]
    window = (torch.tanh((x - left) / WINDOW_EDGE) - torch.tanh((x - right) / WINDOW_EDGE)) / 2
    return torch.where(is_windowed < 0.1, window * u, u)
