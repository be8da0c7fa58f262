"""Ranks that a launcher has started, torchrun, Slurm or Kubernetes, as processes of their own.

Rank 0 is a run of `ups train` like any other, with a folder and a report. The others have none of
that: they prepare what their machine lacks, train with it, and end.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ups.config import RunConfig
from ups.data.sources import open_store
from ups.latents.ahead import look
from ups.latents.cached import Cached
from ups.latents.key import ENCODED_SPLITS
from ups.machine.ranks import Place
from ups.pipeline.phases import build_caches, load_latents, stage_splits
from ups.pipeline.rank import step_of
from ups.pipeline.state import sharing_of
from ups.progress import Show
from ups.validate.run import require_valid

if TYPE_CHECKING:
    from ups.latents.loader import Latents
    from ups.training.loop import TrainResult
    from ups.training.ranks import Ranks

log = logging.getLogger(__name__)


@contextmanager
def joined(config: RunConfig, place: Place) -> Iterator[Ranks]:
    """Meet the other ranks; they learn what this one fails with inside.

    Raises:
        RankError: they do not come, or have another config or commit.
    """
    from ups.training.ranks import Ranks

    ranks = Ranks.join(config, place)
    with ranks.failing_together():
        yield ranks


def meet_prepared(ranks: Ranks, latents: Latents) -> None:
    """Say that this machine's latents are prepared, and wait for those of the others.

    Raises:
        RankError: others are of other data, or a rank failed meanwhile.
    """
    ranks.tell(_prepared(ranks))
    ranks.agree("data", _digest(latents), math.inf)  # another machine may still be fetching


def train_as_rank(
    config: RunConfig, ranks: Ranks, latents: Latents, run_dir: Path, **options: Any
) -> TrainResult:
    """Train with the others.

    Args:
        options: of `ups.training.loop.train`.
    """
    from ups.training.loop import train

    step = step_of(config, ranks)
    result = train(config, latents, run_dir, step=step, ranks=ranks, **options)
    ranks.leave()
    return result


def follow(config: RunConfig, place: Place, show: Show) -> None:
    """Be another rank than 0, from beginning to end."""
    require_valid(config)
    with joined(config, place) as ranks:
        prepares = place.local_rank == 0
        if not prepares:
            ranks.hear(_prepared(ranks))
        stop = threading.Event()
        store = open_store(config)
        found = look(config, store, stop, show, sharing=sharing_of(config))
        known = found.sources if isinstance(found, Cached) else None
        staged = stage_splits(config, ENCODED_SPLITS, store, show, known=known)
        entries = None
        if config.features.preload != "off":
            overwrite = prepares and not config.features.reuse_cache
            entries = build_caches(config, staged, show, overwrite=overwrite)
        latents = load_latents(config, staged, entries)
        try:
            meet_prepared(ranks, latents)
            train_as_rank(config, ranks, latents, config.runs_dir)
        finally:
            latents.close()


def _prepared(ranks: Ranks) -> str:
    return f"prepared/{ranks.machine}"


def _digest(latents: Latents) -> str:
    """Of what the latents were made of."""
    text = json.dumps(latents.key_fields, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
