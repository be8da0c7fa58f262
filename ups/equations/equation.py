"""What the rest of the project has to know of an equation."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Solve(Protocol):
    def __call__(
        self,
        draws: Tensor,
        parameter: float,
        t_T: Tensor,
        grid_points: int,
        /,
        *,
        device: str = "cpu",
        progress: Callable[[float], None] | None = None,
    ) -> Tensor:
        """Random trajectories at the cell centres and the times t_T.

        Args:
            draws: (N, 15), of `initial_conditions.draw`: they determine u0.
            parameter: of the equation, the same for all.
            t_T: (T,), increasing.
            device: to compute on, if that pays.
            progress: takes the share that is done, after each saved time; what it raises stops.
        Returns:
            (N, T, X) float32.
        """


def is_same_value(one: float, other: float) -> bool:
    """Whether two values of a parameter are one, which may have been stored as float32."""
    return math.isclose(one, other, rel_tol=1e-6)


@dataclass(frozen=True, slots=True)
class Equation:
    """An equation with one parameter, which a trajectory has one value of.

    Attributes:
        name: in configs, and what the names of its problems begin with.
        parameter: its key in configs and manifests; `symbol`, the same for people.
        attribute: what PDEBench's files call it, as an attribute and before its value in names.
        conserves_mean: whether the mean of u over space never changes.
        scale: parameters → a feature of order one, by which the operator is conditioned.
    """

    name: str
    formula: str
    parameter: str
    symbol: str
    attribute: str
    conserves_mean: bool
    scale: Callable[[Tensor], Tensor]
    solve: Solve

    def value_in(self, name: str) -> float | None:
        """The parameter's value in the name of a file: 0.001 in `1D_Burgers_Sols_Nu1e-3`."""
        number = r"\d+(?:\.\d+)?(?:[eE][-+]?\d+)?"
        ends = r"(?!\d|\.\d|[a-zA-Z][-+]?\d)"  # `Nu0p01` is none
        found = re.search(f"{self.attribute}({number}){ends}", name)
        return float(found[1]) if found else None
