"""Predict how the trajectories of a file go on: PDEBench's layout in and out."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ups.config import Model
from ups.data import attributes, header
from ups.data.pdebench import TrajectoryFile
from ups.equations import Equation
from ups.equations.initial_conditions import cell_centres
from ups.errors import InputError
from ups.files import replacing
from ups.inference.inputs import as_fields, frames_per_step, grid_stride, step_numbers
from ups.inference.operator import TrainedOperator
from ups.inference.problems import TrainedProblem
from ups.progress import Progress
from ups.training.metrics import nrmse_over_time

log = logging.getLogger(__name__)

BATCH_SIZE, NUM_EXAMPLES = 32, 3


class FilePrediction(Model):
    """What was predicted, and where it is.

    Attributes:
        given_frames: of the file, which the output begins with.
        nrmse: of the predicted frames that the file has, too; None where it has none.
    """

    output: Path
    picture: Path | None
    equation: str
    parameter: float
    num_trajectories: int
    given_frames: int
    num_steps: int
    step_dt: float
    nrmse: float | None


def predict_file(
    operator: TrainedOperator,
    path: Path,
    output: Path,
    *,
    parameter: Mapping[str, float],
    problem: str | None = None,
    steps: int | None = None,
    picture: Path | None = None,
    overwrite: bool = False,
    progress: Progress = lambda _done, _total: None,
) -> FilePrediction:
    """Predict from the first frames of each trajectory, and write them and what follows.

    Where the file has frames at the times that are predicted, they are compared.

    Args:
        path: as `TrajectoryFile` reads it, also with a single frame of each trajectory.
        output: gets `tensor` (N, T, X) float32, of which the first frames are those given;
            `x-coordinate` (X,), `t-coordinate` (T + 1,), one step apart, and the parameter as the
            attribute that PDEBench gives it.
        parameter: its name and value; empty: what the file says.
        problem: see `TrainedOperator.predict`.
        steps: operator steps; None: to the end of the file.
        picture: drawn there.
        overwrite: what stands in the place of output or picture.
        progress: takes trajectories done and in all.
    Raises:
        InputError: a file is there; the file's frames do not give what is needed; see `predict`.
        DataError, ShapeError: see `TrajectoryFile` and `TrainedOperator.predict`.
    """
    _check_free(path, output, picture, overwrite)
    own, value = _problem_and_value(operator, path, parameter, problem)
    with _open(path, own.equation, value) as reader:
        x_stride = grid_stride(reader.grid_points, operator.config, str(path))
        stride, num_steps = _stride_and_steps(operator, reader, own, steps)
    history, numbers = operator.history, step_numbers(None, num_steps, own.step_dt)
    examples: list[tuple[Tensor, Tensor]] = []
    errors: list[Tensor] = []
    with (
        _open(path, own.equation, value, stride) as reader,
        replacing(output) as aside,
        h5py.File(aside.name, "w", locking=False) as file,
    ):
        num = reader.num_trajectories
        shape = (num, history + num_steps, operator.grid_points)
        tensor = file.create_dataset("tensor", shape, "<f4")
        file["x-coordinate"], start = _axes(path, reader.grid_points, x_stride)
        times = start + own.step_dt * np.arange(shape[1] + 1)
        file["t-coordinate"] = times.astype(np.float32)
        file.attrs[own.equation.attribute] = value
        for lo in range(0, num, BATCH_SIZE):
            hi = min(lo + BATCH_SIZE, num)
            frames = reader.read(lo, hi)
            reader.check_finite(frames, lo)
            given_BHX, _ = as_fields(frames[:, :history], operator.config, str(path))
            values = torch.full((hi - lo,), value)
            predicted = operator.roll(own, given_BHX, values, numbers).cpu()
            tensor[lo:hi, :history], tensor[lo:hi, history:] = given_BHX, predicted
            later = frames[:, history : history + num_steps]
            truth = torch.from_numpy(later[..., ::x_stride])
            found = predicted[:, : truth.shape[1]]
            errors.append(nrmse_over_time(found, truth))
            wanted = NUM_EXAMPLES - len(examples)
            shown = zip(
                truth[:wanted], (found if found.numel() else predicted)[:wanted], strict=True
            )
            examples += shown
            progress(hi, num)
            if not predicted.isfinite().all():
                log.warning("%s: from trajectory %d on, what is predicted is not finite", path, lo)
    errors_NT = torch.cat(errors)
    is_compared = not errors_NT.isnan().all()
    if picture is not None:
        from ups.training.pictures import draw_fields, draw_prediction

        if is_compared:
            draw_prediction(picture, examples, errors_NT.numpy(), own.step_dt, history)
        else:
            draw_fields(picture, [field for _, field in examples], own.step_dt, history)
    return FilePrediction(
        output=output,
        picture=picture,
        equation=own.equation.name,
        parameter=value,
        num_trajectories=num,
        given_frames=history,
        num_steps=num_steps,
        step_dt=own.step_dt,
        nrmse=errors_NT.nanmean().item() if is_compared else None,
    )


def _check_free(path: Path, output: Path, picture: Path | None, overwrite: bool) -> None:
    for target in (output, picture):
        if target is None or not target.exists():
            continue
        if path.exists() and target.samefile(path):
            raise InputError(f"{target} is the file to predict from: name another one to write")
        if not overwrite:
            raise InputError(f"{target} is there already: name another file, or give --force")


def _open(path: Path, equation: Equation, value: float | None, stride: int = 1) -> TrajectoryFile:
    return TrajectoryFile(
        path,
        equation=equation.name,  # type: ignore[arg-type]
        strides=(stride, 1),
        parameter=value,
        least_frames=1,
    )


def _problem_and_value(
    operator: TrainedOperator, path: Path, parameter: Mapping[str, float], problem: str | None
) -> tuple[TrainedProblem, float]:
    if parameter:
        own = operator.problem_of(problem, **parameter)
        return own, next(iter(parameter.values()))
    trained = {p.equation.name: p.equation for p in operator.problems.values()}
    if len(trained) > 1:
        with header.open_hdf5(path) as file:
            named = attributes.named_equations(file, header.find_data(file, path))
        trained = {e.name: e for e in named if e.name in trained} or trained
    if len(trained) > 1:
        expected = " or ".join(f"--{e.parameter}" for e in trained.values())
        raise InputError(f"{path} does not say of which equation it is: give {expected}")
    (equation,) = trained.values()
    with _open(path, equation, None) as file:
        value = file.parameter
    return operator.problem_of(problem, **{equation.parameter: value}), value


def _stride_and_steps(
    operator: TrainedOperator, file: TrajectoryFile, own: TrainedProblem, steps: int | None
) -> tuple[int, int]:
    """The file's frames per operator step, and how many steps to take.

    Of a file whose frames do not fit the step, the first one is read alone, if that is enough.
    """
    path, num_frames, dt = file.path, file.num_frames, file.dt
    stride = frames_per_step(own.step_dt, dt)
    if stride is None:
        if operator.history > 1 and num_frames > 1:
            raise InputError(
                f"{path}: found frames {dt:g} apart, expected a whole part of the operator's step, "
                f"{own.step_dt:g}, of which {operator.history} are given: save it more often"
            )
        stride = num_frames
    found = -(-num_frames // stride)
    if steps is None and found <= operator.history:
        raise InputError(
            f"{path}: found {found} frames that are {own.step_dt:g} apart, and none to predict up "
            "to: give --steps"
        )
    return stride, found - operator.history if steps is None else steps


def _axes(path: Path, saved_points: int, x_stride: int) -> tuple[NDArray[Any], float]:
    """The points that are predicted at, (X,) float32, and the first frame's time."""
    x, start = cell_centres(saved_points).float().numpy(), 0.0
    with header.open_hdf5(path) as file:
        if (saved := header.coordinate(file, header.POINTS, path)) is not None:
            x = np.ravel(saved[()]).astype(np.float32)[:saved_points]
        if (saved := header.coordinate(file, header.TIMES, path)) is not None:
            start = float(np.ravel(saved[()])[0])
    return x[::x_stride], start
