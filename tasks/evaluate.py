"""Score the checkpoint that val chose on the test split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.timeline import phase_task
from ups.config import RunConfig
from ups.data.sources import Staged

if TYPE_CHECKING:
    from ups.latents.encode import PatchEncoder
    from ups.training.evaluate import Scores


@phase_task("evaluate", task_run_name="5 evaluate")
def evaluate(
    config: RunConfig,
    checkpoint: Path,
    test: Mapping[str, Sequence[Staged]],
    encoders: Mapping[str, PatchEncoder],
    run_dir: Path,
) -> Scores:
    from ups.training.evaluate import evaluate as score

    return score(config, checkpoint, test, encoders, run_dir)
