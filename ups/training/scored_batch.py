"""Errors of one batch of the test split, which one process finds and another may add up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ups.config import ProblemConfig, RunConfig
from ups.data.sources import Staged, open_file
from ups.latents.encode import PatchEncoder
from ups.models.conditioning import conditioning
from ups.progress import Progress
from ups.training.metrics import Metrics, is_zero, nrmse_over_time
from ups.training.step import rollout, windows

Places = list[tuple[Path, int]]  # of each trajectory: its file, and its row there


@dataclass(slots=True)
class ScoredBatch:
    """What the predictions of a batch of test trajectories came to; B of them, T frames predicted.

    Attributes:
        totals: kind of prediction → its errors.
        pdebench: the rollout's errors over all frames.
        errors_BT: nRMSE of the rollout at each predicted frame, on the CPU.
        zeros_B: frames that are zero, on the CPU.
        examples: (truth, rollout) of those that are drawn, on the CPU.
    """

    totals: dict[str, Metrics]
    pdebench: dict[str, float]
    errors_BT: Tensor
    zeros_B: Tensor
    examples: list[tuple[Tensor, Tensor]]
    places: Places
    step_dt: float

    def to_host(self) -> None:
        """Bring all of it into the memory of the CPU."""
        for metrics in self.totals.values():
            metrics.to_host()


def num_batches(config: ProblemConfig, test: Sequence[Staged]) -> int:
    """How many batches the test split of a problem has; none goes over two of its files."""
    found = 0
    for source in test:
        with open_file(config, source.path, source.rows, header_only=True) as reader:
            found += -(-reader.num_trajectories // config.evaluation.batch_size)
    return found


@torch.no_grad()
def score_batches(
    config: ProblemConfig,
    equations: Sequence[str],
    model: Any,
    test: Sequence[Staged],
    encoder: PatchEncoder,
    *,
    is_chosen: Callable[[int], bool] = lambda _number: True,
    progress: Progress = lambda _done, _total: None,
) -> Iterator[tuple[int, ScoredBatch]]:
    """The batches of a problem's test split, each with its number.

    Args:
        equations: of the whole run, which the model is told apart by.
        is_chosen: whether to score the batch of a number.
        progress: takes trajectories done, and in all of the file that is being read.
    Raises:
        DataError: a value is not finite.
    """
    number, num_before, size = 0, 0, config.evaluation.batch_size
    for source in test:
        with open_file(config, source.path, source.rows) as reader:
            step_dt = reader.dt * config.training.time_stride
            for first in range(0, reader.num_trajectories, size):
                end = min(first + size, reader.num_trajectories)
                if is_chosen(number):
                    frames = reader.read(first, end)
                    reader.check_finite(frames, first)
                    u_BTX = torch.from_numpy(frames[:, :: config.training.time_stride])
                    u_BTX = u_BTX.to(encoder.device)
                    parameter_B = torch.full((len(u_BTX),), reader.parameter, device=u_BTX.device)
                    name = reader.equation.name
                    condition_BC = conditioning(equations, name, parameter_B, step_dt)
                    num_examples = max(0, config.evaluation.num_examples - num_before - first)
                    row = first + (source.rows[0] if source.rows else 0)
                    places = [(source.path, row + i) for i in range(len(u_BTX))]
                    predicted = _predict(config, model, encoder, u_BTX, condition_BC)
                    yield number, _errors(predicted, u_BTX, num_examples, places, step_dt)
                    progress(end, reader.num_trajectories)
                number += 1
            num_before += reader.num_trajectories


def _errors(
    predicted: dict[str, tuple[Tensor, Tensor]],
    u_BTX: Tensor,
    num_examples: int,
    places: Places,
    step_dt: float,
) -> ScoredBatch:
    totals = {name: Metrics() for name in predicted}
    for name, pair in predicted.items():
        totals[name].update(*pair)
    pred, target = predicted["rollout"]
    whole = Metrics()
    whole.update(torch.cat([u_BTX[:, : -pred.shape[1]], pred], 1), u_BTX)
    drawn = (frames_BTX[:num_examples].cpu() for frames_BTX in (target, pred))
    return ScoredBatch(
        totals=totals,
        pdebench=whole.result(),
        errors_BT=nrmse_over_time(pred, target).cpu(),
        zeros_B=is_zero(target).sum(1).cpu(),
        examples=list(zip(*drawn, strict=True)),
        places=places,
        step_dt=step_dt,
    )


def _predict(
    config: RunConfig, model: Any, encoder: PatchEncoder, u_BTX: Tensor, condition_BC: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """(prediction, target) pairs, each (B, T - given, X), of the frames after the given ones."""
    history, given = config.operator.history, config.given_frames
    z_BTKD = encoder.encode(u_BTX)
    target = u_BTX[:, given:]
    num_steps = target.shape[1]
    rolled = rollout(model, z_BTKD[:, given - history : given], condition_BC, num_steps)
    before = windows(z_BTKD[:, given - history : -1], history)
    stepped = model(before, condition_BC.repeat_interleave(num_steps, 0))
    return {
        "rollout": (encoder.decode(rolled), target),
        "one_step": (encoder.decode(stepped).view_as(target), target),
        "persistence_rollout": (u_BTX[:, given - 1 : given].expand_as(target), target),
        "persistence_one_step": (u_BTX[:, given - 1 : -1], target),
        "reconstruction": (encoder.decode(z_BTKD[:, given:]), target),
    }
