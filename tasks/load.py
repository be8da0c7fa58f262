"""Put the latents where training reads them, and warm the device up meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tasks.timeline import phase_task
from ups.config import RunConfig
from ups.data.sources import Staged

if TYPE_CHECKING:
    from ups.latents.build import CacheEntry
    from ups.latents.loader import Latents
    from ups.training.step import TrainStep


@phase_task("warm-up", task_run_name="1 warm-up-device")
def warm_up_device(config: RunConfig) -> TrainStep:
    """Import torch, build the model and take a step on made-up data, beside the downloads."""
    from ups.training.step import TrainStep

    step = TrainStep(config)
    step.warm_up()
    return step


@phase_task("load", task_run_name="3 load-latents")
def load_latents(
    config: RunConfig,
    sources: Mapping[str, Mapping[str, Sequence[Staged]]],
    entries: Mapping[str, CacheEntry] | None,
    stop: threading.Event,
) -> Latents:
    from ups.pipeline import load_latents as load

    return load(config, sources, entries, stop=stop)
