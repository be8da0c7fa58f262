"""The equations that there are data of, each with the one parameter that a trajectory has."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

EquationName = Literal["burgers1d", "advection1d"]
NAMES: tuple[EquationName, ...] = get_args(EquationName)


@dataclass(frozen=True, slots=True)
class Equation:
    """
    Attributes:
        parameter: its key in configs and manifests; `symbol`, the same for people.
        attribute: what PDEBench's files call it, as an attribute and before its value in names.
    """

    name: EquationName
    parameter: str
    symbol: str
    attribute: str


EQUATIONS: dict[str, Equation] = {
    equation.name: equation
    for equation in (
        Equation("burgers1d", "nu", "ν", "Nu"),
        Equation("advection1d", "beta", "β", "beta"),
    )
}


def named_after(task: str) -> EquationName | None:
    """The equation whose name a task's name is, or begins with: `burgers1d_nu0.01`."""
    return next((name for name in NAMES if task.startswith(name)), None)


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Each of them once, in the order of this file, whatever the order of a config."""
    wanted = set(names)
    return tuple(name for name in NAMES if name in wanted)
