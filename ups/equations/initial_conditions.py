"""The random initial conditions of PDEBench's 1-D data sets, for any equation on [0, 1], periodic.

Grid: values are those at the cell centres x_i = (i + 1/2) / X.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

NUM_DRAWS = 15  # random numbers that make one initial condition
NUM_MODES = 4
WINDOW_EDGE = 0.01  # width of the tanh at either end of a window, in units of the domain


def cell_centres(grid_points: int) -> Tensor:
    """(X,) float64, in units of the domain."""
    return (torch.arange(grid_points, dtype=torch.float64) + 0.5) / grid_points


def initial_conditions(num: int, grid_points: int, generator: torch.Generator) -> Tensor:
    """`draw` and `evaluate` in one, at the cell centres: (N, X) float64."""
    return evaluate(draw(num, generator), cell_centres(grid_points))


def draw(num: int, generator: torch.Generator) -> Tensor:
    """What determines `num` initial conditions, (N, 15) uniform on [0, 1).

    Args:
        generator: on the CPU. Each trajectory takes the same number of draws, so that two calls
            for 3 and 5 give the trajectories of one call for 8.
    """
    return torch.rand(num, NUM_DRAWS, generator=generator, dtype=torch.float64)


def evaluate(draws: Tensor, x: Tensor) -> Tensor:
    """Random initial conditions, as PDEBench describes them.

    u0 = Σ A_k sin(2π k n_k x + φ_k), k from 1 to 4, A_k ~ U(0, 1), φ_k ~ U(0, 2π), where n_k says
    how often k was drawn, with two draws: a mode that was not drawn adds a constant, so that each
    trajectory has a mean of its own, and one that was drawn twice has wave number 2k. One in ten
    becomes |u0|; then each has its sign flipped or not; then one in ten is multiplied by a smooth
    window whose ends are drawn from (0.1, 0.135) and (0.55, 0.585).

    Args:
        draws: (N, 15), of `draw`.
        x: (X,) float64 in [0, 1).
    Returns:
        (N, X) float64.
    """
    u = torch.zeros(len(draws), len(x), dtype=torch.float64)
    drawn = (NUM_MODES * draws[:, :2]).floor() + 1
    for k in range(1, NUM_MODES + 1):
        mode = k * (drawn == k).sum(1, keepdim=True)
        amplitude, turns = draws[:, 1 + k : 2 + k], draws[:, 5 + k : 6 + k]
        u += amplitude * torch.sin(2 * math.pi * (mode * x + turns))
    is_absolute, is_negative, is_windowed = (draws[:, i : i + 1] for i in (10, 11, 12))
    u = torch.where(is_absolute < 0.1, u.abs(), u) * (1.0 - 2.0 * (is_negative < 0.5))
    left, right = 0.1 + 0.035 * draws[:, 13:14], 0.55 + 0.035 * draws[:, 14:15]
    window = (torch.tanh((x - left) / WINDOW_EDGE) - torch.tanh((x - right) / WINDOW_EDGE)) / 2
    return torch.where(is_windowed < 0.1, window * u, u)
