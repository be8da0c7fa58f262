"""The numbers beside the trajectories of an HDF5 file: the equation's parameter, the time step."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from ups.data.header import TIMES, coordinate, member
from ups.equations import EQUATIONS, Equation, is_same_value
from ups.errors import DataError

log = logging.getLogger(__name__)

_ATTRIBUTE, _NAME = "its attribute", "the file's name"

FOREIGN = {"rho": "ReacDiff", "eta": "CFD", "zeta": "CFD"}  # PDEBench's parameters of others


def find_parameter(
    file: Any, data: Any, path: Path, equation: Equation, expected: float | None = None
) -> tuple[float, bool]:
    """Its value, and whether the file does not hold it.

    An attribute, `Nu` or `beta`, else a constant data set `params` or one of The Well's `scalars`,
    else the name, else what is expected.

    Raises:
        DataError: there is none, it is no number above 0 or several, of another equation, or
            another than is expected.
    """
    name, symbol, key = equation.attribute, equation.symbol, equation.parameter
    found = _find(file, data, path, equation)
    if expected is None:
        if found is None:
            raise DataError(
                f"{path}: no attribute {name!r} on the file or on {data.name.lstrip('/')!r}, and "
                f"no constant data set 'params'; add the attribute, or parameter: {{{key}: …}} to "
                "data (or to its task) in the config: the model is conditioned on it"
            )
        value, where = found
        if where != _ATTRIBUTE:
            level = logging.WARNING if where == _NAME else logging.INFO
            _say_once(level, f"{path}: no attribute {name}; {symbol} = {value:g} from {where}")
        return value, where == _NAME
    if found is None:
        _say_once(logging.INFO, f"{path}: no {symbol} in it; {expected:g} from the config")
        return expected, True
    value, where = found
    if not is_same_value(value, expected):
        raise DataError(
            f"{path}: found {symbol} = {value:g} by {where}, and {expected:g} as parameter.{key} "
            "in the config, expected the same; correct the config, or the file"
        )
    return value, where == _NAME


def _find(file: Any, data: Any, path: Path, equation: Equation) -> tuple[float, str] | None:
    """The value that the file or its name tells, and what of them does.

    Raises: see `find_parameter`.
    """
    name, symbol = equation.attribute, equation.symbol
    value = _attribute(file, data, name, path)
    others = {e.attribute: e.name for e in EQUATIONS.values() if e != equation} | FOREIGN
    for other, its in others.items():
        if _attributes(file, data, other):
            raise DataError(
                f"{path}: found the attribute {other!r} of {its}, expected {name!r} of "
                f"{equation.name} and no other; correct the equation of its task, or the file"
            )
    if value is not None:
        return value, _ATTRIBUTE
    for key in ("params", name, name.lower(), f"scalars/{name}", f"scalars/{name.lower()}"):
        values = member(file, key, path)
        if values is None or values.dtype.kind not in "fiu" or not values.size:
            continue
        is_constant = len(np.unique(values[()])) == 1
        if is_constant or values.size == data.shape[0]:  # one of each trajectory is not supported
            return _positive(values[()], f"the data set {key!r}", path), f"the data set {key}"
    if (named := equation.value_in(path.stem)) is not None:
        for other, its in FOREIGN.items():
            if re.search(rf"(?i)(?<![a-z]){other}\d", path.stem):
                raise DataError(
                    f"{path}: its name is that of {its} data, for its {other}, expected data of "
                    f"{equation.name}; use those, or rename the file"
                )
        return _positive(named, f"{symbol} in the file's name", path), _NAME
    return None


def find_dt(file: Any, data: Any, num_frames: int, path: Path) -> float:
    """Time between frames: by the saved times, else attribute `dt`, else PDEBench's span of 2.

    Of a single frame there is none: NaN.

    Raises:
        DataError: the times are not evenly spaced, or not those of the frames.
    """
    if num_frames == 1:
        return math.nan
    if (saved := coordinate(file, TIMES, path)) is not None:
        name = saved.name.lstrip("/")
        if saved.shape is None or saved.dtype.kind not in "fiu":
            raise DataError(
                f"{path}: {name} holds {saved.dtype}, expected {num_frames} or "
                f"{num_frames + 1} numbers; correct the file"
            )
        t = np.ravel(saved[()]).astype(np.float64)
        if len(t) not in (num_frames, num_frames + 1):
            raise DataError(
                f"{path}: {name} has {len(t)} entries, expected {num_frames} or "
                f"{num_frames + 1}, the number of frames or one more; correct the file"
            )
        steps = np.diff(t[:num_frames])
        dt = float(steps.mean())
        if not (0 < dt < math.inf) or np.abs(steps - dt).max() > 0.01 * dt:
            raise DataError(
                f"{path}: {name} is not evenly spaced and increasing, as the operator's one "
                "time step needs it; correct the file"
            )
        return float(f"{dt:.6g}")  # float32 times: 0.01, not 0.00999999978
    if (attribute := _attribute(file, data, "dt", path)) is not None:
        return attribute
    dt = 2.0 / (num_frames - 1)
    took = f"took {dt:g}, PDEBench's t = 0 to 2"
    _say_once(logging.WARNING, f"{path}: no t-coordinate and no attribute dt; {took}")
    return dt


@functools.cache
def _say_once(level: int, line: str) -> None:
    """Log it the first time only: each phase of a run opens the file anew."""
    log.log(level, "%s", line)


def named_equations(file: Any, data: Any) -> list[Equation]:
    """The equations whose parameter an attribute gives."""
    return [e for e in EQUATIONS.values() if _attributes(file, data, e.attribute)]


def _attributes(file: Any, data: Any, name: str) -> list[tuple[str, Any]]:
    """All of this name, on the file and on the data set: as it is written there, and its value."""
    keys = dict.fromkeys((name, name.lower(), name.capitalize()))
    return [(k, holder.attrs[k]) for holder in (file, data) for k in keys if k in holder.attrs]


def _attribute(file: Any, data: Any, name: str, path: Path) -> float | None:
    """The number above 0 that an attribute holds; None where there is no such attribute."""
    found = [
        _positive(value, f"the attribute {key!r}", path)
        for key, value in _attributes(file, data, name)
    ]
    if found and not is_same_value(min(found), max(found)):
        raise DataError(
            f"{path}: found {min(found):g} and {max(found):g} as the attribute {name!r} of file "
            "and data set, expected one value; correct the file"
        )
    return found[0] if found else None


def _positive(value: Any, what: str, path: Path) -> float:
    """The one number above 0 that a value of the file is, as a number, an array or a text.

    Raises:
        DataError: it is something else.
    """
    given = np.ravel(np.asarray(value))
    numbers = np.empty(0)
    if given.dtype.kind in "fiuSUO":
        with contextlib.suppress(TypeError, ValueError):
            numbers = np.unique(given.astype(np.float64))
    if not len(numbers) or not all(0 < number < math.inf for number in numbers):
        shown = given.tolist() if len(given) != 1 else given.tolist()[0]
        raise DataError(
            f"{path}: {what} is {shown!r:.80}, expected a number above 0; correct the file"
        )
    if len(numbers) > 1:
        raise DataError(
            f"{path}: {what} has {len(numbers)} values, from {numbers[0]:g} to {numbers[-1]:g}, "
            "expected one for all trajectories; make a file, and a task, for each value"
        )
    return float(numbers[0])
