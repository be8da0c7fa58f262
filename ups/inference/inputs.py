"""What an operator is given: fields, a parameter and times, checked and in the form it takes."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ups.config import RunConfig
from ups.errors import DataError, InputError, ShapeError
from ups.inference.problems import TrainedProblem

OFF_STEP = 1e-3  # of a step, by which a time may miss one


def as_fields(u0: Any, config: RunConfig, where: str = "u0") -> tuple[Tensor, bool]:
    """The last `history` frames of each trajectory on the encoder's grid, and if u0 is one field.

    Args:
        where: they are from, in messages.
    Returns:
        (N, H, X) float32, where u0 is.
    Raises:
        ShapeError, DataError: see `TrainedOperator.predict`.
    """
    u = u0 if isinstance(u0, Tensor) else np.asarray(u0)
    is_real = u.is_floating_point() if isinstance(u, Tensor) else u.dtype.kind == "f"
    if not is_real:
        raise ShapeError(
            f"{where}: found values of type {u.dtype}, expected real numbers in floating point: "
            "convert it, such as by astype('float32')"
        )
    history, shape = config.operator.history, tuple(u.shape)
    if history > 1 and len(shape) in (1, 2):
        raise ShapeError(
            f"{where}: found {shape}, one frame of each trajectory, expected (N, H, X) with "
            f"{history} frames or more, one operator step apart; a single trajectory is u0[None]"
        )
    if len(shape) not in (1, 2, 3) or 0 in shape:
        raise ShapeError(f"{where}: found shape {shape}, expected (X,), (N, X) or (N, H, X)")
    if len(shape) == 3 and shape[1] < history:
        raise ShapeError(
            f"{where}: found {shape[1]} frames of each trajectory, expected {history} or more, one "
            "operator step apart: give the frames before, too"
        )
    x_stride = grid_stride(shape[-1], config, where)
    if not isinstance(u, Tensor):
        u = torch.from_numpy(np.ascontiguousarray(u, np.float32))
    u_NHX = u.detach().float().reshape(-1, shape[1] if len(shape) == 3 else 1, shape[-1])
    u_NHX = u_NHX[:, -history:, ::x_stride]
    is_bad_N = ~u_NHX.isfinite().all(-1).all(-1)
    if is_bad_N.any():
        raise DataError(
            f"{where}: trajectory {int(is_bad_N.int().argmax())} has NaN or infinite values "
            f"({int(is_bad_N.sum())} of {len(is_bad_N)} do), expected finite ones: leave them out"
        )
    return u_NHX, len(shape) == 1


def grid_stride(points: int, config: RunConfig, where: str) -> int:
    """Which of the points of a field are those that an operator was trained on: every so many-th.

    Raises:
        ShapeError: they are of another grid.
    """
    own, whole = config.encoded_points, config.data.grid_points
    if points not in (own, whole):
        every = f"those are every {config.encoder.x_stride}th"
        or_whole = "" if own == whole else f", or the {whole} of which {every}"
        raise ShapeError(
            f"{where}: found {points} grid points, expected the {own} that the operator was "
            f"trained on{or_whole}: interpolate it to that grid, or train on this one"
        )
    return 1 if points == own else config.encoder.x_stride


def as_given(fields: Tensor, u0: Any) -> Any:
    """Fields as the kind and of the dtype that u0 is."""
    if isinstance(u0, Tensor):
        return fields.to(u0.dtype)
    return fields.numpy().astype(np.asarray(u0).dtype, copy=False)


def as_values(
    parameter: Mapping[str, Any], num: int, problems: Iterable[TrainedProblem]
) -> NDArray[np.float64]:
    """The value of the one parameter for each trajectory, (N,).

    Raises:
        InputError, ShapeError: it is missing, of no equation, or not above 0; not one, or N.
    """
    known = {p.equation.parameter: str(p) for p in problems}
    if len(parameter) != 1 or not parameter.keys() <= known.keys():
        found = ", ".join(parameter) or "none"
        expected = " or ".join(f"{name}=…" for name in known)
        raise InputError(
            f"the equation's parameter: found {found}, expected {expected}; the operator was "
            f"trained on {', '.join(map(str, known.values()))}"
        )
    ((name, value),) = parameter.items()
    value = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
    try:
        values = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name}: found {value!r:.80}, expected a number above 0") from None
    if values.shape not in ((), (num,)):
        raise ShapeError(
            f"{name}: found shape {values.shape}, expected one number, or ({num},), one of each "
            "trajectory"
        )
    bad = np.atleast_1d(values)[~(np.atleast_1d(values) > 0) | ~np.isfinite(np.atleast_1d(values))]
    if len(bad):
        raise InputError(f"{name}: found {bad[0]:g}, expected a number above 0")
    return np.broadcast_to(values, num).copy()


def step_numbers(times: Any, steps: int | None, step_dt: float) -> Sequence[int]:
    """How many operator steps each of the times is after the given frame.

    Raises:
        InputError: not one of both is given; there are none; a time is no multiple of the step.
    """
    if (times is None) == (steps is None):
        raise InputError(
            f"times and steps: found {'both' if steps is not None else 'neither'}, expected one: "
            f"times=…, multiples of the operator's step of {step_dt:g}, or steps=…, how many"
        )
    if steps is not None:
        try:
            num = operator.index(steps)
        except TypeError:
            num = 0
        if num < 1:
            raise InputError(f"steps: found {steps!r}, expected a whole number of 1 or more")
        return range(1, num + 1)
    try:
        times_T = np.atleast_1d(np.asarray(times, np.float64))
    except (TypeError, ValueError):
        raise InputError(f"times: found {times!r:.80}, expected numbers") from None
    if times_T.ndim != 1 or not len(times_T):
        raise InputError(f"times: found shape {times_T.shape}, expected one time or a list of them")
    numbers = times_T / step_dt
    for time, number in zip(times_T.tolist(), numbers.tolist(), strict=True):
        if not (
            np.isfinite(number) and number > -OFF_STEP and abs(number - round(number)) < OFF_STEP
        ):
            raise InputError(
                f"times: found {time:g}, expected multiples of the operator's step, {step_dt:g}, "
                "from 0 on (the last given frame): take the nearest"
            )
    return [round(number) for number in numbers.tolist()]


def frames_per_step(step_dt: float, dt: float) -> int | None:
    """How many frames, `dt` apart, an operator step takes; None where it is no whole number."""
    ratio = step_dt / dt
    if not np.isfinite(ratio) or round(ratio) < 1 or abs(ratio - round(ratio)) > OFF_STEP:
        return None
    return round(ratio)
