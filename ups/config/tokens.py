"""Numbers of tokens that a grid has, for whoever chose one that does not divide it."""

from __future__ import annotations

import math

from ups.config.operators import LatentCNN, OperatorSettings

NUM_NAMED = 3


def fitting_tokens(operator: OperatorSettings, points: int, wanted: int, dim: int) -> list[int]:
    """The divisors of a frame's points that the operator takes, the nearest to `wanted` first.

    Args:
        dim: latent.dim; 0: the points of a patch, as the encoder `identity` has it.
    """
    divisors = {
        d for i in range(1, math.isqrt(points) + 1) if points % i == 0 for d in (i, points // i)
    }
    fit = [d for d in divisors if not operator.faults(d, dim or points // d)]
    return sorted(fit, key=lambda d: (abs(math.log(d / wanted)), d))


def such_as(operator: OperatorSettings, points: int, wanted: int, dim: int) -> str:
    """The end of a message that names such numbers; empty where there are none."""
    if nearest := fitting_tokens(operator, points, wanted, dim)[:NUM_NAMED]:
        return f", such as {_listed(nearest)}{_of_identity(points, nearest, dim)}"
    other = LatentCNN(kind="latent_cnn")
    if not operator.on_grid and (nearest := fitting_tokens(other, points, wanted, dim)[:NUM_NAMED]):
        return (
            f"; none goes with this operator, operator.kind {other.kind} takes {_listed(nearest)}"
        )
    return ""


def _of_identity(points: int, nearest: list[int], dim: int) -> str:
    return "" if dim else f", with latent.dim {_listed([points // d for d in nearest])}"


def _listed(numbers: list[int]) -> str:
    *most, last = map(str, numbers)
    return f"{', '.join(most)} or {last}" if most else last
