"""Train the operator: epochs over shuffled trajectories, val picks the checkpoint."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ups.background import Background
from ups.config import Model, RunConfig
from ups.errors import Interrupted, TrainingDiverged
from ups.latents.loader import Latents
from ups.machine.devices import threads_that_pay
from ups.machine.processes import DeferredSignals
from ups.progress import Progress
from ups.runs.folder import BEST, CHECKPOINTS, LAST, checkpoint_to_resume
from ups.runs.metrics import by_problem, write_epochs
from ups.training import checkpoint
from ups.training.step import TrainStep, epoch_order, num_starts
from ups.training.validation import validate

log = logging.getLogger(__name__)

LARGE_BYTES = 64 << 20  # of a checkpoint; less is on the disk before the next step would be done


class TrainResult(Model):
    """What training came to. Times are Unix times in seconds, durations in seconds.

    Attributes:
        first_epoch: start and end of the first epoch's steps, without val; None where none ended.
        waited_s: of it, for trajectories that were still on their way.
    """

    checkpoint: Path
    num_epochs: int
    num_steps: int
    best_epoch: int
    best_val_nrmse: float
    first_step_at: float | None
    first_epoch: tuple[float, float] | None
    waited_s: float = 0.0
    seconds: float
    epoch_time_s: float
    tier: str
    resumed_from_step: int


@dataclass(slots=True)
class Position:
    """Where training stands: everything that is not in the weights."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    train_loss: float = 0.0
    best_epoch: int = -1
    best_val_nrmse: float = math.inf
    began_at_epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


def train(
    config: RunConfig,
    latents: Latents,
    run_dir: Path,
    *,
    step: TrainStep | None = None,
    resume: Path | None = None,
    stop: threading.Event | None = None,
    on_first_step: Callable[[float], None] | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Train, and leave `checkpoints/last.pt`, `checkpoints/best.pt` and `metrics.jsonl` in run_dir.

    A checkpoint of this run is resumed; SIGTERM, Ctrl-C and `stop` take effect between two steps
    and leave one.

    Args:
        step: a warmed-up step; a new one otherwise.
        resume: a checkpoint of another run to go on from.
        on_first_step: called with the Unix time at which the first step was done on the device.
        progress: called now and then with steps taken and in all.
    Raises:
        TrainingDiverged: the loss, or val's nRMSE in every epoch, is not finite.
        DataError: val holds nothing but zeros.
        CheckpointError: the checkpoint to resume is of another model, other data or another
            encoder, or one of another run is complete.
        Interrupted: `stop` was set.
    """
    started = time.monotonic()
    step = TrainStep(config) if step is None else step
    last = run_dir / CHECKPOINTS / LAST
    resume = checkpoint_to_resume(run_dir, resume)
    is_own = resume == last
    position = Position() if resume is None else _restore(resume, config, latents, step, is_own)
    if not is_own:  # another run's best was measured there, and its checkpoint is not here
        position.best_epoch, position.best_val_nrmse = -1, math.inf
        position.began_at_epoch = position.epoch
    resumed_from = position.step
    loop = _Loop(config, latents, run_dir, step, position, stop or threading.Event())
    first_step_at = loop.run(on_first_step or _ignore, progress or _ignore)
    seconds = time.monotonic() - started
    epoch_times = [row["training/epoch_time_sec"] for row in position.history]
    return TrainResult(
        checkpoint=run_dir / CHECKPOINTS / BEST,
        num_epochs=position.epoch,
        num_steps=position.step,
        best_epoch=position.best_epoch,
        best_val_nrmse=position.best_val_nrmse,
        first_step_at=first_step_at,
        first_epoch=loop.first_epoch,
        waited_s=loop.waited_s,
        seconds=seconds,
        epoch_time_s=sorted(epoch_times)[len(epoch_times) // 2],
        tier=latents.tier,
        resumed_from_step=resumed_from,
    )


class _Loop:
    def __init__(
        self,
        config: RunConfig,
        latents: Latents,
        run_dir: Path,
        step: TrainStep,
        position: Position,
        stop: threading.Event,
    ) -> None:
        self.config, self.latents, self.run_dir = config, latents, run_dir
        self.step, self.position, self.stop = step, position, stop
        self.first_epoch: tuple[float, float] | None = None
        self.waited_s = 0.0
        self._notes: list[str] = []
        self._signals = DeferredSignals()
        self._writing: Background[None] | None = None
        self._starts = num_starts(latents.train, config) or 1
        items = len(latents.train) * self._starts
        self.steps_per_epoch = -(-items // step.items_per_step)
        self.num_epochs = config.stages.operator.epochs
        steps = self.steps_per_epoch * self.num_epochs
        self.total_steps = min(steps, config.stages.operator.max_steps or steps)

    def run(self, on_first_step: Callable[[float], None], progress: Progress) -> float | None:
        position, first_step_at, stopped = self.position, None, False
        data = self.latents.train
        size = self.step.multiplications(data)
        with self._signals, self._written(), self.step.on_stream(), threads_that_pay(size):
            self.step.begin(data, self.total_steps, position.step)
            while not self._is_done():
                started = time.monotonic()
                order_M = epoch_order(data, self.config, position.epoch)
                self.step.begin_epoch(order_M, position.batch)
                rows_M = order_M.numpy() // self._starts
                while position.batch < self.steps_per_epoch and position.step < self.total_steps:
                    if stopped := self._is_stopped() or not self._has_arrived(rows_M):
                        break
                    self.step()
                    position.step += 1
                    position.batch += 1
                    if first_step_at is None:
                        self.step.synchronize()
                        first_step_at = time.time()
                        on_first_step(first_step_at)
                    if position.step % self.config.training.log_every == 0:
                        self._check_loss()
                        progress(position.step, self.total_steps)
                if stopped := stopped or not self._end_epoch(started):
                    break
                progress(position.step, self.total_steps)
            if stopped and self._may_save():
                self.save(LAST)
                log.info("stopped in epoch %d; %s resumes", position.epoch + 1, LAST)
            elif stopped:
                log.info("stopped before the data were verified: no step of this start is kept")
        if stopped:  # no handler of the signal, delivered above, has raised
            raise Interrupted("training was stopped; a retry resumes it")
        if position.best_epoch > 0 and not math.isfinite(position.best_val_nrmse):
            raise TrainingDiverged(
                "val's nRMSE was not finite in any epoch, so that none is the best: lower "
                "stages.operator.optimizer.lr, and see with `ups validate` what is in the data"
                + "".join(f"; {note}" for note in self._notes)
            )
        return first_step_at

    def _has_arrived(self, rows_M: NDArray[np.int64]) -> bool:
        """Wait for the trajectories of the next batch; whether they are there, not stopped before.

        Those of later epochs wait for the verdict on all of them.
        """
        arrival, items = self.latents.arrival, self.step.items_per_step
        if arrival is None:
            return True
        if self.position.epoch > 0:
            return self._has_settled()
        first = self.position.batch * items
        return arrival.wait_for(rows_M[first : first + items], self._is_stopped)

    def _has_settled(self) -> bool:
        """Wait until all that is trained on is verified; whether it is, not stopped before."""
        arrival = self.latents.arrival
        return arrival is None or arrival.wait_settled(self._is_stopped)

    def _may_save(self) -> bool:
        """Whether no step was trained on data that may still turn out to be false."""
        arrival = self.latents.arrival
        return arrival is None or arrival.is_settled

    def _is_stopped(self) -> bool:
        return self.stop.is_set() or self._signals.pending is not None

    def _end_epoch(self, started: float) -> bool:
        """Validate and save; whether that was done, not stopped meanwhile."""
        position = self.position
        train_loss = self._check_loss() / position.batch
        trained, trained_at = time.monotonic(), time.time()
        if self.first_epoch is None:
            self.first_epoch = (trained_at - (trained - started), trained_at)
            self.waited_s = self.latents.arrival.waited_s if self.latents.arrival else 0.0
        if not self._has_settled():
            return False
        val = validate(self.step, self.latents, self.config, self._is_stopped)
        if val is None:
            return False
        val_nrmse = val.mean
        for note in val.notes:
            if note not in self._notes:
                self._notes.append(note)
                log.warning("%s", note)
        position.epoch += 1
        position.batch, position.train_loss = 0, 0.0
        # The first epoch counts even where its rollout diverges, so that there is a checkpoint.
        is_best = position.best_epoch < 0 or (
            math.isfinite(val_nrmse) and not val_nrmse >= position.best_val_nrmse
        )
        if is_best:
            position.best_epoch, position.best_val_nrmse = position.epoch, val_nrmse
        metrics = {
            "epoch": position.epoch,
            "step": position.step,
            "train/loss": train_loss,
            "val/nrmse_rollout": val_nrmse,
            **by_problem("val", "nrmse_rollout", val.nrmse),
            "train/lr": self.step.schedule.lr.item(),
            "training/epoch_time_sec": trained - started,
            "val/time_sec": time.monotonic() - trained,
            "time": trained_at,
        }
        position.history.append(metrics)
        write_epochs(self.run_dir, position.history)
        is_due = position.epoch % self.config.checkpoint.every_epochs == 0 or self._is_done()
        if names := [name for name, wanted in ((BEST, is_best), (LAST, is_due)) if wanted]:
            self.save(*names)
        epoch, best = f"{position.epoch}/{self.num_epochs}", " (best)" if is_best else ""
        losses = f"train loss {train_loss:.3e}, val rollout nRMSE {val_nrmse:.4f}{best}"
        log.info("epoch %s: %s, %.2f s", epoch, losses, trained - started)
        return True

    def _check_loss(self) -> float:
        """Bring the epoch's sum of losses to the host: the loop's only synchronisation."""
        self.position.train_loss += self.step.loss_sum.item()
        self.step.loss_sum.zero_()
        if not math.isfinite(self.position.train_loss):
            raise TrainingDiverged(
                f"the training loss is {self.position.train_loss} at step {self.position.step}: "
                "lower stages.operator.optimizer.lr or training.grad_clip"
            )
        return self.position.train_loss

    def _is_done(self) -> bool:
        position, patience = self.position, self.config.stages.operator.patience
        all_taken = position.step >= self.total_steps and position.batch == 0
        waited = position.epoch - max(position.began_at_epoch, position.best_epoch)
        out_of_patience = patience is not None and waited >= patience
        return all_taken or position.epoch >= self.num_epochs or out_of_patience

    def save(self, *names: str) -> None:
        """Write a checkpoint under these names; a large one while training goes on.

        Raises:
            OSError: this one, or the large one before it, could not be written.
        """
        self._check_loss()
        trained_on = checkpoint.trained_on(self.config, self.latents)
        position = asdict(self.position)
        state = {**self.step.state_dict(), "position": position, "trained_on": trained_on}
        self._wait_for_writing()
        record = checkpoint.snapshot(self.config, state)
        paths = [self.run_dir / CHECKPOINTS / name for name in names]
        self._writing = Background(lambda: checkpoint.write(record, *paths), "checkpoint")
        if checkpoint.num_bytes(record) < LARGE_BYTES:
            self._wait_for_writing()

    @contextmanager
    def _written(self) -> Iterator[None]:
        """What is being written is there in the end, however that comes."""
        try:
            yield
        finally:
            self._wait_for_writing()

    def _wait_for_writing(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()


def _ignore(*_: object) -> None:
    """Takes the reports that nobody asked for."""


def _restore(
    path: Path, config: RunConfig, latents: Latents, step: TrainStep, is_own: bool
) -> Position:
    record = checkpoint.load(path, step.device)
    checkpoint.check_fits(path, record, config)
    if not is_own:  # of a run of its own, evaluation may be all that is left
        checkpoint.check_goes_on(path, record, config)
    sources = {name: fields["sources"] for name, fields in latents.key_fields.items()}
    if not checkpoint.check_data(path, record, sources, latents.encoders):
        log.warning(
            "%s is of an earlier version, and does not say which data and which encoder it was "
            "trained with: only the configs could be compared",
            path,
        )
    step.load_state_dict(record)
    checkpoint.restore_rng(record)
    position = Position(**record["position"])
    log.info("resuming from %s at epoch %d, step %d", path, position.epoch + 1, position.step)
    return position
