"""A trained operator in Python: `ups.load(…)`, and then `operator.predict(u0, nu=0.01, …)`."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ups.config import RunConfig
from ups.errors import InputError
from ups.inference.inputs import as_fields, as_given, as_values, step_numbers
from ups.inference.problems import TrainedProblem, config_of, problems_of
from ups.machine.devices import training_device
from ups.models.build import build_operator
from ups.models.conditioning import conditioning
from ups.training import checkpoint
from ups.training.step import rollout

log = logging.getLogger(__name__)

F = TypeVar("F")
DEVICES = ("auto", "cpu", "cuda")
SAME = 1e-6  # relative; a parameter that differs by less is the one that was trained on


class TrainedOperator:
    """Predicts how fields go on, by the averaged weights of a checkpoint.

    Attributes:
        config: what it was trained with, as far as predictions depend on it.
        problems: name → problem that it was trained on.
        model: the network, on `device`; its frames are latents.
        history: frames that a prediction starts from, one operator step apart.
        grid_points: X, of what it predicts.
    """

    def __init__(
        self,
        config: RunConfig,
        model: nn.Module,
        problems: Mapping[str, TrainedProblem],
        device: str,
    ) -> None:
        self.config, self.model, self.problems, self.device = config, model, problems, device
        self.history, self.grid_points = config.operator.history, config.encoded_points

    def __repr__(self) -> str:
        problems = ", ".join(map(str, self.problems.values()))
        steps = " or ".join(f"{step:g}" for step in {p.step_dt for p in self.problems.values()})
        return (
            f"<operator of {problems}: {self.grid_points} points, {self.history} given frames, "
            f"steps of {steps}, on {self.device}>"
        )

    def predict(
        self,
        u0: F,
        *,
        times: float | Sequence[float] | NDArray[Any] | None = None,
        steps: int | None = None,
        problem: str | None = None,
        batch_size: int = 32,
        **parameter: Any,
    ) -> F:
        """Predict fields at later times.

        Args:
            u0: the given fields, NumPy or torch, in the equation's own units: one field (X,), a
                batch (N, X), or frames of a batch (N, H, X), one operator step apart, of which the
                last `history` are used. With `history` above 1 they have to be (N, H, X). X is
                `grid_points`; of an operator that was trained on every x_stride-th point of its
                data's grid, fields on that whole grid are taken, too, and those points used.
            times: after the last given frame, in the equation's units: multiples of the operator's
                step, in any order; 0 is the given frame itself.
            steps: instead of times: that many operator steps, all of them.
            problem: which of several problems the fields are of, where the parameter leaves it
                open.
            batch_size: trajectories at once, which the memory has to hold.
            parameter: of the equation by its name, `nu=0.01` or `beta=0.4`: a number, or (N,), one
                of each trajectory. It is ν as PDEBench has it: the diffusion coefficient is ν/π.
        Returns:
            (T, X) of one field, else (N, T, X), with T times or steps; of the kind, dtype and
            device of u0, without gradients.
        Raises:
            ShapeError: u0 is not of this grid, or has too few frames, another rank or type.
            DataError: u0 holds NaN or infinity.
            InputError: times are no multiples of the step; the parameter is missing, is none of the
                equations', or fits several problems. See `ups.errors`.
        A parameter outside what was trained on is predicted with, and a warning logged.
        """
        u_NHX, is_single = as_fields(u0, self.config)
        values_N = as_values(parameter, len(u_NHX), self.problems.values())
        name = next(iter(parameter))
        rows_of = self._assign(name, values_N, problem)
        numbers_of = {
            own: step_numbers(times, steps, self.problems[own].step_dt) for own in rows_of
        }
        num_times = len(next(iter(numbers_of.values())))
        out_NTX = torch.empty(len(u_NHX), num_times, self.grid_points, device=u_NHX.device)
        for own, rows_N in rows_of.items():
            for rows_B in rows_N.split(batch_size):
                value_B = torch.from_numpy(values_N)[rows_B]
                given_BHX, numbers = u_NHX[rows_B.to(u_NHX.device)], numbers_of[own]
                predicted = self.roll(self.problems[own], given_BHX, value_B, numbers)
                out_NTX[rows_B.to(out_NTX.device)] = predicted.to(out_NTX.device)
        if not out_NTX.isfinite().all():
            log.warning("the prediction is not finite: it diverged, predict fewer steps")
        return cast(F, as_given(out_NTX[0] if is_single else out_NTX, u0))

    def problem_of(self, problem: str | None = None, **parameter: float) -> TrainedProblem:
        """Which problem fields with this parameter are of: see `predict`.

        Raises:
            InputError: none, or several are.
        """
        values_N = as_values(parameter, 1, self.problems.values())
        return self.problems[next(iter(self._assign(next(iter(parameter)), values_N, problem)))]

    def _assign(
        self, name: str, values_N: NDArray[np.float64], problem: str | None
    ) -> dict[str, Tensor]:
        """Problem → which of the trajectories are of it."""
        candidates = [p for p in self.problems.values() if p.equation.parameter == name]
        if problem is not None:
            if problem not in {p.name for p in candidates}:
                raise InputError(
                    f"problem: found {problem!r}, expected one with {name}: {_listed(candidates)}"
                )
            candidates = [self.problems[problem]]
        _warn_outside(name, values_N, candidates)
        found: dict[str, list[int]] = {}
        for row, value in enumerate(values_N.tolist()):
            fitting = candidates
            if len(candidates) > 1:
                fitting = [p for p in candidates if np.isclose(value, p.parameters, SAME, 0).any()]
            if len(fitting) != 1:
                raise InputError(
                    f"{name} = {value:g} fits {'none' if not fitting else 'several'} of "
                    f"{_listed(candidates)}, each of which has an encoder of its own: name one, "
                    f"problem={candidates[0].name!r}"
                )
            found.setdefault(fitting[0].name, []).append(row)
        return {own: torch.tensor(rows) for own, rows in found.items()}

    @torch.no_grad()
    def roll(
        self, problem: TrainedProblem, u_BHX: Tensor, value_B: Tensor, numbers: Sequence[int]
    ) -> Tensor:
        """The frames so many steps after the last of those given, as `as_fields` gives them.

        Args:
            value_B: (B,), the parameter of each trajectory.
        Returns:
            (B, T, X), on the operator's device.
        """
        encoder, equations = problem.encoder, self.config.data.equations
        u_BHX, value_B = u_BHX.to(self.device), value_B.float().to(self.device)
        condition_BC = conditioning(equations, problem.equation.name, value_B, problem.step_dt)
        out_BTX = u_BHX[:, -1:].repeat(1, len(numbers), 1)
        later = [place for place, number in enumerate(numbers) if number]
        if later:
            z_BHKD = encoder.encode(u_BHX)
            z_BSKD = rollout(self.model, z_BHKD, condition_BC, max(numbers))
            out_BTX[:, later] = encoder.decode(z_BSKD[:, [numbers[i] - 1 for i in later]])
        return out_BTX


def _warn_outside(
    name: str, values_N: NDArray[np.float64], problems: Iterable[TrainedProblem]
) -> None:
    trained = [value for problem in problems for value in problem.parameters]
    low, high = min(trained), max(trained)
    outside = values_N[(values_N < low * (1 - SAME)) | (values_N > high * (1 + SAME))]
    if len(outside):
        span = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        log.warning(
            "%s = %g lies outside what the operator was trained on, %s: its predictions there "
            "were never scored",
            name,
            outside[0],
            span,
        )


def _listed(problems: Iterable[TrainedProblem]) -> str:
    return ", ".join(map(str, problems)) or "none"


def load(path: Path, device: str = "auto") -> TrainedOperator:
    """See `ups.load`."""
    if device not in DEVICES:
        raise InputError(f"device: found {device!r}, expected one of {', '.join(DEVICES)}")
    record = checkpoint.load(path, mmap=True)
    config = config_of(path, record)
    training = config.training.model_copy(update={"device": device})
    device = training_device(config.model_copy(update={"training": training}))
    model = build_operator(config)
    model.load_state_dict(record["ema"])
    model = model.to(device).eval().requires_grad_(False)
    return TrainedOperator(config, model, problems_of(path, record, config, device), device)
