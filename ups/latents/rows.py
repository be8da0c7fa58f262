"""The trajectories of a split, those of one task after those of another, before they are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ups.config import RunConfig
from ups.data.pdebench import TrajectoryFile
from ups.errors import DataError
from ups.latents.store import LatentFile
from ups.models.conditioning import conditioning


@dataclass(frozen=True, slots=True)
class Rows:
    """The trajectories of one file, and what they have in common."""

    task: str
    equation: str
    num: int
    num_frames: int
    dt: float
    parameter: float

    @classmethod
    def of_latents(cls, config: RunConfig, file: LatentFile) -> Rows:
        """
        Args:
            config: of the task that the file is of.
        """
        task, (num, num_frames, _, _) = config.data.only_task, file.shape
        (parameter,) = file.parameters.values()
        return cls(task.name, task.equation, num, num_frames, file.dt, parameter)

    @classmethod
    def of_fields(cls, config: RunConfig, file: TrajectoryFile) -> Rows:
        """The same, of a file that is not encoded."""
        task = config.data.only_task
        sizes = file.num_trajectories, file.num_frames
        return cls(task.name, task.equation, *sizes, file.dt, file.parameter)


def condition_of(config: RunConfig, rows: Sequence[Rows]) -> Tensor:
    """(N, C) float32, what conditions the operator on each of the trajectories."""
    stride, equations = config.training.time_stride, config.data.equations
    return torch.cat(
        [
            conditioning(equations, r.equation, torch.full((r.num,), r.parameter), r.dt * stride)
            for r in rows
        ]
    )


def ranges_of(rows: Sequence[Rows]) -> dict[str, range]:
    """Task → where its trajectories are among all of them."""
    ranges: dict[str, range] = {}
    end = 0
    for r in rows:
        first = ranges[r.task].start if r.task in ranges else end
        end += r.num
        ranges[r.task] = range(first, end)
    return ranges


def check_alike(config: RunConfig, rows: Sequence[Rows]) -> None:
    """One batch holds trajectories of all tasks, so they need the same number of frames.

    Raises:
        DataError: they have not, after the time stride, or are too short for one training pair.
    """
    stride, first = config.training.time_stride, rows[0]
    for r in rows:
        check_frames(config, r.num_frames)
        found, expected = -(-r.num_frames // stride), -(-first.num_frames // stride)
        if found != expected:
            raise DataError(
                f"trajectories of {first.task} have {first.num_frames} frames and those of "
                f"{r.task} {r.num_frames}: with training.time_stride {stride} that is {expected} "
                f"and {found}, expected the same number; use data saved at the same times"
            )


def check_frames(config: RunConfig, num_frames: int) -> None:
    """
    Raises:
        DataError: a trajectory is too short for one training pair.
    """
    training = config.training
    needed = training.time_stride * training.rollout_horizon + 1
    if num_frames < needed:
        raise DataError(
            f"trajectories have {num_frames} frames; training.time_stride {training.time_stride} "
            f"and rollout_horizon {training.rollout_horizon} need {needed}: lower one of them"
        )
