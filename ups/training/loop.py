"""Train the operator: epochs over shuffled trajectories, val picks the checkpoint."""

from __future__ import annotations

import functools
import logging
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from ups.config import Model, RunConfig
from ups.errors import ChecksumMismatch, DataError, Interrupted, TrainingDiverged
from ups.latents.loader import Latents
from ups.machine.devices import threads_that_pay
from ups.machine.processes import DeferredSignals
from ups.progress import Progress
from ups.runs.folder import BEST, CHECKPOINTS, LAST, UNVERIFIED
from ups.runs.metrics import LOSS, VAL, by_problem, write_epochs
from ups.trace import MOST_STEPS, Steps, note_steps, note_stretch, noted
from ups.training.position import Position, restore, restore_on_all
from ups.training.saving import Saving
from ups.training.step import TrainStep, epoch_order, num_starts
from ups.training.validation import validate

if TYPE_CHECKING:
    from ups.latents.arrival import Arrival
    from ups.training.ranked_step import RankedStep
    from ups.training.ranks import Ranks

log = logging.getLogger(__name__)


class TrainResult(Model):
    """What training came to. Times are Unix times in seconds, durations in seconds.

    Attributes:
        first_epoch: start and end of the first epoch's steps, without val; None where none ended.
        waited_s: of it, for trajectories that were still on their way.
    """

    checkpoint: Path
    num_epochs: int
    num_steps: int
    steps_per_epoch: int
    best_epoch: int
    best_val_nrmse: float
    first_step_at: float | None
    first_epoch: tuple[float, float] | None
    waited_s: float = 0.0
    seconds: float
    epoch_time_s: float
    tier: str
    resumed_from_step: int


def train(
    config: RunConfig,
    latents: Latents,
    run_dir: Path,
    *,
    step: TrainStep | None = None,
    ranks: Ranks | None = None,
    resume: Path | None = None,
    stop: threading.Event | None = None,
    on_first_step: Callable[[float], None] | None = None,
    on_first_epoch: Callable[[TrainResult], None] | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Train, and leave `checkpoints/last.pt`, `checkpoints/best.pt` and `metrics.jsonl` in run_dir.

    A checkpoint of this run is resumed; SIGTERM, Ctrl-C and `stop` take effect between two steps
    and leave one. Before the verdict on the data that is `checkpoints/unverified.pt`, which nobody
    else reads; where they turn out to be false, it goes.

    Args:
        step: a warmed-up step; a new one otherwise. With `ranks` one of theirs.
        ranks: the processes that train together, each of which calls this. Rank 0 alone reads and
            writes in run_dir, and says how it goes. They stop together, after the same step.
        resume: a checkpoint of another run to go on from.
        on_first_step: called with the Unix time at which the first step was done on the device.
        on_first_epoch: called with what training has come to once an epoch is over.
        progress: called with steps taken and in all, first after the first step, then now and then.
    Raises:
        TrainingDiverged: the loss, or val's nRMSE in every epoch, is not finite.
        DataError: val holds nothing but zeros.
        CheckpointError: the checkpoint to resume is of another model, other data or another
            encoder, or one of another run is complete.
        Interrupted: `stop` was set.
    """
    started = time.monotonic()
    step = TrainStep(config) if step is None else step
    if ranks is None:
        position = restore(run_dir, resume, config, latents, step)
    else:
        ranked = cast("RankedStep", step)
        position = restore_on_all(ranks, run_dir, resume, config, latents, ranked)
    resumed_from = position.step
    loop = _Loop(config, latents, run_dir, step, position, stop or threading.Event(), ranks)

    def result() -> TrainResult:
        epoch_times = [row["training/epoch_time_sec"] for row in position.history]
        return TrainResult(
            checkpoint=run_dir / CHECKPOINTS / BEST,
            num_epochs=position.epoch,
            num_steps=position.step,
            steps_per_epoch=loop.steps_per_epoch,
            best_epoch=position.best_epoch,
            best_val_nrmse=position.best_val_nrmse,
            first_step_at=loop.first_step_at,
            first_epoch=loop.first_epoch,
            waited_s=loop.waited_s,
            seconds=time.monotonic() - started,
            epoch_time_s=sorted(epoch_times)[len(epoch_times) // 2],
            tier=latents.tier,
            resumed_from_step=resumed_from,
        )

    def note_first_epoch() -> None:
        if on_first_epoch is not None:
            on_first_epoch(result())

    try:
        loop.run(on_first_step or _ignore, note_first_epoch, progress or _ignore)
    except (ChecksumMismatch, DataError):  # what was trained on is false
        (run_dir / CHECKPOINTS / UNVERIFIED).unlink(missing_ok=True)
        raise
    return result()


class _Loop:
    def __init__(
        self,
        config: RunConfig,
        latents: Latents,
        run_dir: Path,
        step: TrainStep,
        position: Position,
        stop: threading.Event,
        ranks: Ranks | None,
    ) -> None:
        self.config, self.latents, self.run_dir = config, latents, run_dir
        self.step, self.position, self.stop, self.ranks = step, position, stop, ranks
        self._writes = ranks is None or ranks.rank == 0
        self.first_step_at: float | None = None
        self.first_epoch: tuple[float, float] | None = None
        self.waited_s = 0.0
        self._steps: Steps | None = None
        self._notes: list[str] = []
        self._signals = DeferredSignals(patient=ranks is not None)
        self._saving = Saving(config, latents, run_dir, step, position, writes=self._writes)
        self._starts = num_starts(latents.train, config) or 1
        items = len(latents.train) * self._starts
        self.steps_per_epoch = -(-items // step.items_per_step)
        self.num_epochs = config.stages.operator.epochs
        steps = self.steps_per_epoch * self.num_epochs
        self.total_steps = min(steps, config.stages.operator.max_steps or steps)

    def run(
        self,
        on_first_step: Callable[[float], None],
        on_first_epoch: Callable[[], None],
        progress: Progress,
    ) -> None:
        position, stopped = self.position, False
        data = self.latents.train
        size = self.step.multiplications(data)
        with self._signals, self._saving.written(), self.step.on_stream(), threads_that_pay(size):
            self.step.begin(data, self.total_steps, position.step)
            while not self._is_done():
                started, is_first = time.monotonic(), self.first_epoch is None
                order_M = epoch_order(data, self.config, position.epoch)
                self.step.begin_epoch(order_M, position.batch)
                rows_M = order_M.numpy() // self._starts
                begun, most = self._noted_steps(rows_M), MOST_STEPS if is_first else 0
                while position.batch < self.steps_per_epoch and position.step < self.total_steps:
                    if stopped := self._has_to_stop() or not self._has_arrived(rows_M):
                        break
                    if len(begun) < most:
                        begun.append(time.time())
                    self.step()
                    position.step += 1
                    position.batch += 1
                    if self.first_step_at is None:
                        self.step.synchronize()
                        if self.ranks is not None:  # the slowest one's counts
                            self.ranks.meet()
                        self.first_step_at = time.time()
                        progress(position.step, self.total_steps)
                        with noted("after the first step"):
                            on_first_step(self.first_step_at)
                    if position.step % self.config.training.log_every == 0:
                        self._check_loss()
                        progress(position.step, self.total_steps)
                if stopped := stopped or not self._end_epoch(started):
                    break
                progress(position.step, self.total_steps)
                if is_first:
                    on_first_epoch()
            if stopped:
                self._leave_checkpoint()
        if stopped:  # no handler of the signal, delivered above, has raised
            raise Interrupted("training was stopped; a retry resumes it")
        if position.best_epoch > 0 and not math.isfinite(position.best_val_nrmse):
            raise TrainingDiverged(
                "val's nRMSE was not finite in any epoch, so that none is the best: lower "
                "stages.operator.optimizer.lr, and see with `ups validate` what is in the data"
                + "".join(f"; {note}" for note in self._notes)
            )

    def _noted_steps(self, rows_M: NDArray[np.int64]) -> list[float]:
        """Where the steps of the first epoch are noted as they begin; later ones are not."""
        if self._steps is None:
            items = self.step.items_per_step
            self._steps = note_steps(rows_M, self.position.batch * items, items)
        return self._steps.began_at

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
        wait = functools.partial(arrival.wait_for, rows_M[first : first + items])
        return self._wait(arrival, wait)

    def _has_settled(self) -> bool:
        """Wait until all that is trained on is verified; whether it is, not stopped before."""
        arrival = self.latents.arrival
        return arrival is None or self._wait(arrival, arrival.wait_settled)

    def _wait(self, arrival: Arrival, wait: Callable[[Callable[[], bool]], bool]) -> bool:
        """Wait for data, and save meanwhile what is not verified; whether they came, not a stop."""
        while not wait(lambda: self._is_stopped() or self._saving.is_due):
            if arrival.stops(self._is_stopped()):
                return False
            self._saving.save_unverified()
        return True

    def _has_to_stop(self) -> bool:
        """Whether to stop before the next step; of several ranks all, where one wants to."""
        if self.ranks is None:
            return self._is_stopped()
        step = cast("RankedStep", self.step)
        if self._is_stopped():
            step.wish_to_stop()
        return step.has_to_stop()

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
        note_stretch(f"epoch {position.epoch + 1}", trained_at - (trained - started), trained_at)
        if not self._has_settled():
            return False
        with noted("validate"):
            val = validate(self.step, self.latents, self.config, self._is_stopped, self.ranks)
        if val is None:
            return False
        val_nrmse = val.mean
        for note in val.notes:
            if note not in self._notes:
                self._notes.append(note)
                self._say(logging.WARNING, "%s", note)
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
            LOSS: train_loss,
            VAL: val_nrmse,
            **by_problem("val", "nrmse_rollout", val.nrmse),
            "train/lr": self.step.schedule.lr.item(),
            "training/epoch_time_sec": trained - started,
            "val/time_sec": time.monotonic() - trained,
            "time": trained_at,
        }
        position.history.append(metrics)
        if self._writes:
            write_epochs(self.run_dir, position.history)
        is_due = position.epoch % self.config.checkpoint.every_epochs == 0 or self._is_done()
        if names := [name for name, wanted in ((BEST, is_best), (LAST, is_due)) if wanted]:
            self._saving.save(*names)
        epoch, best = f"{position.epoch}/{self.num_epochs}", " (best)" if is_best else ""
        losses = f"train loss {train_loss:.3e}, val rollout nRMSE {val_nrmse:.4f}{best}"
        self._say(logging.INFO, "epoch %s: %s, %.2f s", epoch, losses, trained - started)
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

    def _leave_checkpoint(self) -> None:
        """Save what a stopped run goes on from."""
        arrival, epoch = self.latents.arrival, self.position.epoch + 1
        if arrival is None or arrival.is_settled:
            self._check_loss()
            self._saving.save(LAST)
            self._say(logging.INFO, "stopped in epoch %d; %s resumes", epoch, LAST)
            return
        if not self._writes:
            return
        if self.position.step > self._saving.saved_step:
            self._saving.save_unverified()
            self._saving.wait()
        what = "stopped in epoch %d before the data were verified; step %d is saved"
        log.info(what, epoch, self._saving.saved_step)

    def _say(self, level: int, line: str, *facts: object) -> None:
        """A line in the log; of several ranks from one."""
        if self._writes:
            log.log(level, line, *facts)


def _ignore(*_: object) -> None:
    """Takes the reports that nobody asked for."""
