"""The checkpoints of a training that goes on, written in a thread beside it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ups.background import Background
from ups.config import RunConfig
from ups.latents.loader import Latents
from ups.runs.folder import CHECKPOINTS, LAST, UNVERIFIED
from ups.trace import noted
from ups.training import checkpoint
from ups.training.position import Position
from ups.training.step import TrainStep

LARGE_BYTES = 64 << 20  # of a checkpoint; less is on the disk before the next step would be done
# What is not verified yet is saved while training waits for data: so often, and in no more than
# this share of the time.
UNVERIFIED_EVERY_S, UNVERIFIED_SHARE = 1.0, 0.1


class Saving:
    """Writes what a run goes on from, one file at a time.

    Attributes:
        saved_step: of the last checkpoint before the verdict on the data.
    """

    def __init__(
        self,
        config: RunConfig,
        latents: Latents,
        run_dir: Path,
        step: TrainStep,
        position: Position,
        *,
        writes: bool,
    ) -> None:
        self._config, self._latents, self._step = config, latents, step
        self._position, self._folder = position, run_dir / CHECKPOINTS
        self._writes = writes
        self._writing: Background[None] | None = None
        self.saved_step = position.step
        self._save_again_at = time.monotonic() + UNVERIFIED_EVERY_S

    @property
    def is_due(self) -> bool:
        """Whether to save again what is not verified yet."""
        has_new = self._position.step > self.saved_step
        return self._writes and has_new and time.monotonic() >= self._save_again_at

    def save(self, *names: str) -> None:
        """Write a checkpoint under these names, in a thread, while training goes on.

        On a CPU a small one is waited for: the thread would want the core of the steps.

        Raises:
            OSError: this one, or the one before it, could not be written.
        """
        self.wait()
        state = self._state(asdict(self._position))  # all ranks have their part of some
        if not self._writes:
            return
        taken = checkpoint.snapshot(self._config, state)

        def write() -> None:
            with noted("write a checkpoint", file=", ".join(names)):
                checkpoint.write(taken, *(self._folder / name for name in names))
            if LAST in names:
                (self._folder / UNVERIFIED).unlink(missing_ok=True)

        self._writing = Background(write, "checkpoint")
        if self._step.device == "cpu" and checkpoint.num_bytes(taken.record) < LARGE_BYTES:
            self.wait()

    def save_unverified(self) -> None:
        """Write what this run alone goes on from, if its data turn out to be true.

        Not while a file is written to: the next start would take it for the one that was read.
        """
        arrival, position = self._latents.arrival, asdict(self._position)
        assert arrival is not None, "without one, all is verified"
        self.wait()
        position["train_loss"] += self._step.loss_sum.item()  # which goes on being summed
        state = {**self._state(position), "fetches": self._latents.fetches}
        taken = checkpoint.snapshot(self._config, state)
        self._save_again_at = time.monotonic() + UNVERIFIED_EVERY_S
        if not arrival.is_untouched:
            return

        def write() -> None:
            began = time.monotonic()
            with noted("write a checkpoint", file=UNVERIFIED):  # a reboot ends the fetches, too
                checkpoint.write(taken, self._folder / UNVERIFIED, durable=False)
            ended = time.monotonic()
            pause_s = max(UNVERIFIED_EVERY_S, (ended - began) / UNVERIFIED_SHARE)
            self._save_again_at = ended + pause_s

        self.saved_step, self._save_again_at = self._position.step, math.inf
        self._writing = Background(write, "checkpoint")

    @contextmanager
    def written(self) -> Iterator[None]:
        """What is being written is there in the end, however that comes."""
        try:
            yield
        finally:
            self.wait()

    def wait(self) -> None:
        """Return once nothing is being written; raises what that failed with."""
        writing, self._writing = self._writing, None
        if writing is not None:
            with noted("wait for the checkpoint"):
                writing.result()

    def _state(self, position: dict[str, Any]) -> dict[str, Any]:
        trained_on = checkpoint.trained_on(self._config, self._latents)
        return {**self._step.state_dict(), "position": position, "trained_on": trained_on}
