"""Whether trajectories have frames enough, and those of several files as many as each other."""

from __future__ import annotations

from collections.abc import Sequence

from ups.config import RunConfig
from ups.errors import DataError


def check_frames(config: RunConfig, num_frames: int) -> None:
    """Refuse trajectories without a single training pair, or a frame to score.

    Raises:
        DataError: a trajectory is too short.
    """
    training, history, given = config.training, config.operator.history, config.given_frames
    steps = max(history + training.rollout_horizon, given + 1) - 1
    needed = training.time_stride * steps + 1
    if num_frames < needed:
        more = f", operator.history {history}" if history > 1 else ""
        more += f", evaluation.given_frames {given}" if given > history else ""
        raise DataError(
            f"trajectories have {num_frames} {_as_read(config)}; training.time_stride "
            f"{training.time_stride} and rollout_horizon {training.rollout_horizon}{more} need "
            f"{needed}: lower one of them"
        )


def check_frames_alike(config: RunConfig, frames: Sequence[tuple[str, int]]) -> None:
    """Refuse files whose trajectories have, after the time stride, another number of frames.

    Args:
        frames: of each file, what it is called and the frames of a trajectory.
    Raises:
        DataError: they differ, or are too few for one training pair.
    """
    stride = config.training.time_stride
    for name, found in frames:
        first, expected = frames[0]
        check_frames(config, found)
        if -(-found // stride) != -(-expected // stride):
            raise DataError(
                f"trajectories of {first} have {expected} {_as_read(config)} and those of {name} "
                f"{found}: with training.time_stride {stride} that is {-(-expected // stride)} and "
                f"{-(-found // stride)}, expected the same number: use data saved alike"
            )


def _as_read(config: RunConfig) -> str:
    """What the number of frames counts: those of the file, or those that are read of them."""
    stride = config.encoder.t_stride
    return "frames" if stride == 1 else f"frames left by encoder.t_stride {stride}"
