"""Train the operator. Called directly by the flow: only then does cancelling reach it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.timeline import phase_task
from ups.config import RunConfig

if TYPE_CHECKING:
    from ups.latents.loader import Latents
    from ups.training.loop import TrainResult
    from ups.training.step import TrainStep


@phase_task("train", task_run_name="4 train-operator")
def train_operator(
    config: RunConfig,
    latents: Latents,
    run_dir: Path,
    step: TrainStep | None,
    resume: Path | None,
    on_first_step: Callable[[float], None],
) -> TrainResult:
    from ups.training.loop import train

    return train(config, latents, run_dir, step=step, resume=resume, on_first_step=on_first_step)
