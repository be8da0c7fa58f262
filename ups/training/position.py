"""Where training stands, and what it goes on from."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ups.config import RunConfig
from ups.data.sources import PROVISIONAL
from ups.errors import CheckpointError
from ups.latents.loader import Latents
from ups.runs.folder import CHECKPOINTS, LAST, UNVERIFIED, checkpoint_to_resume
from ups.training import checkpoint
from ups.training.step import TrainStep

if TYPE_CHECKING:
    from ups.training.ranked_step import RankedStep
    from ups.training.ranks import Ranks

log = logging.getLogger(__name__)


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


def restore(
    run_dir: Path, given: Path | None, config: RunConfig, latents: Latents, step: TrainStep
) -> Position:
    """Load the state that a run goes on from: its own, else a checkpoint that it was given.

    Raises:
        CheckpointError: it is of another model, other data or another encoder, or one of another
            run is complete.
    """
    path = run_dir / CHECKPOINTS / UNVERIFIED
    if path.exists():
        try:
            record = checkpoint.load_unverified(path, step.state_device, latents.fetches)
            _check(path, record, config, latents)
            return _load(path, record, step)
        except (OSError, CheckpointError) as error:
            log.warning("steps that were taken before the verdict are taken again: %s", error)
    found = checkpoint_to_resume(run_dir, given)
    if found is None:
        return Position()
    record = checkpoint.load(found, step.state_device)
    _wait_for_digests(latents)
    _check(found, record, config, latents)
    is_own = found == run_dir / CHECKPOINTS / LAST
    if not is_own:  # of a run of its own, evaluation may be all that is left
        checkpoint.check_goes_on(found, record, config)
    position = _load(found, record, step)
    if not is_own:  # another run's best was measured there, and its checkpoint is not here
        position.best_epoch, position.best_val_nrmse = -1, math.inf
        position.began_at_epoch = position.epoch
    return position


def restore_on_all(
    ranks: Ranks,
    run_dir: Path,
    given: Path | None,
    config: RunConfig,
    latents: Latents,
    step: RankedStep,
) -> Position:
    """The same on several ranks: rank 0 alone reads, and all begin with what it has.

    Raises: as `restore`, on rank 0.
    """
    if ranks.rank == 0:
        position = restore(run_dir, given, config, latents, step)
        ranks.tell("position", json.dumps(asdict(position)))
    else:
        position = Position(**json.loads(ranks.hear("position")))
    step.take_from_first()
    return position


def _wait_for_digests(latents: Latents) -> None:
    """Return when the SHA-256 of all data are known: without a manifest, once they are there.

    Raises: what their arrival has failed with.
    """
    if latents.arrival is not None and PROVISIONAL in json.dumps(latents.key_fields):
        log.info("going on once all data are hashed: no manifest says whether they are the same")
        latents.arrival.wait_settled(lambda: False)


def _check(path: Path, record: dict[str, Any], config: RunConfig, latents: Latents) -> None:
    checkpoint.check_fits(path, record, config)
    sources = {name: fields["sources"] for name, fields in latents.key_fields.items()}
    if not checkpoint.check_data(path, record, sources, latents.encoders):
        log.warning(
            "%s is of an earlier version, and does not say which data and which encoder it was "
            "trained with: only the configs could be compared",
            path,
        )


def _load(path: Path, record: dict[str, Any], step: TrainStep) -> Position:
    step.load_state_dict(record)
    checkpoint.restore_rng(record)
    position = Position(**record["position"])
    log.info("resuming from %s at epoch %d, step %d", path, position.epoch + 1, position.step)
    return position
