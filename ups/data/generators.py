"""Generate the data set of any equation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from ups.config import Generate
from ups.data import advection, burgers
from ups.equations import EquationName


def generate(
    path: Path,
    num: int,
    *,
    equation: EquationName,
    settings: Generate,
    seed: int,
    grid_points: int,
    progress: Callable[[int], None],
) -> None:
    """Write `num` random trajectories, on the GPU where there is one and it helps.

    Args:
        settings: have the parameter of the equation.
        progress: told how many trajectories are done.
    """
    parameter = settings.parameter_of(equation)
    assert parameter is not None, "a config is checked for it when it is loaded"
    if equation == "advection1d":
        advection.generate(
            path, num, beta=parameter, seed=seed, grid_points=grid_points, progress=progress
        )
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    burgers.generate(
        path,
        num,
        nu=parameter,
        seed=seed,
        grid_points=grid_points,
        device=device,
        progress=progress,
    )
