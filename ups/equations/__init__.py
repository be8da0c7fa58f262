"""The equations that there are data of: one file each, and this registry.

To add one, write its file and name it in `EquationName` and in `EQUATIONS`; the config's key for
its parameter follows. Configs are read before torch is loaded, so none of these files imports it
at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

from ups.equations.advection import ADVECTION
from ups.equations.burgers import BURGERS
from ups.equations.equation import Equation, is_same_value

__all__ = ["EQUATIONS", "Equation", "EquationName", "in_order", "is_same_value", "named_after"]

EquationName = Literal["burgers1d", "advection1d"]
EQUATIONS: dict[str, Equation] = {equation.name: equation for equation in (BURGERS, ADVECTION)}

NAMES: tuple[EquationName, ...] = get_args(EquationName)
assert tuple(EQUATIONS) == NAMES, "the two lists of this file differ"


def named_after(problem: str) -> EquationName | None:
    """The equation whose name a problem's name is, or begins with: `burgers1d_nu0.01`."""
    return next((name for name in NAMES if problem.startswith(name)), None)


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Each of them once, in the order of the registry, whatever the order of a config."""
    wanted = set(names)
    return tuple(name for name in NAMES if name in wanted)
