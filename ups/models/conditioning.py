"""What the operator is told beside the latents: equation, parameter and time of a step.

Of a run with one equation the features are its parameter and the time of a step. With several,
each equation has two, whether it is this one, and its parameter, 0 for all the others; the time of
a step comes last. Each is of order one, which each equation's `scale` sees to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ups.equations import EQUATIONS


def num_conditions(equations: Sequence[str]) -> int:
    """C, features of a trajectory in a run with these equations."""
    return 2 if len(equations) == 1 else 2 * len(equations) + 1


def conditioning(
    equations: Sequence[str], equation: str, parameter_N: Tensor, step_dt: float
) -> Tensor:
    """The features of trajectories of one equation.

    Args:
        equations: of the run, each once.
        parameter_N: (N,), ν or β.
        step_dt: time of an operator step.
    Returns:
        (N, C), of the dtype of the parameters.
    """
    scaled_N, zero = EQUATIONS[equation].scale(parameter_N), torch.zeros_like(parameter_N)
    time_N = torch.full_like(parameter_N, math.log10(step_dt) + 1)
    if len(equations) == 1:
        return torch.stack([scaled_N, time_N], -1)
    features = []
    for name in equations:
        is_own = name == equation
        features += [zero + 1 if is_own else zero, scaled_N if is_own else zero]
    return torch.stack([*features, time_N], -1)
