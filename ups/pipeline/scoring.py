"""Score the test split after the training: in this process, or in as many as have trained."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ups.config import RunConfig
from ups.data.sources import Staged
from ups.machine.ranks import ranks_to_start

if TYPE_CHECKING:
    from ups.latents.encode import PatchEncoder
    from ups.training.evaluate import Scores, SplitErrors
    from ups.training.scored_batch import ScoredBatch

log = logging.getLogger(__name__)


def evaluate(
    config: RunConfig,
    checkpoint: Path,
    test: Mapping[str, Sequence[Staged]],
    encoders: Mapping[str, PatchEncoder],
    run_dir: Path,
) -> Scores:
    """Score a checkpoint on the test split, in as many processes as this one has had train.

    Args: see `ups.training.evaluate.evaluate`.
    """
    if (num := ranks_to_start(config)) > 1:
        return evaluate_in_ranks(config, num, checkpoint, test, encoders, run_dir)
    from ups.training.evaluate import evaluate as evaluate_alone

    return evaluate_alone(config, checkpoint, test, encoders, run_dir)


def evaluate_in_ranks(
    config: RunConfig,
    num: int,
    checkpoint: Path,
    test: Mapping[str, Sequence[Staged]],
    encoders: Mapping[str, PatchEncoder],
    run_dir: Path,
) -> Scores:
    """Score as `ups.training.evaluate.evaluate` does, in several processes.

    Each scores whole batches, and says what they came to; they are added up here in their order.

    Args:
        num: of them, at most.
    Raises:
        RankError: one was killed, or could not be started.
        Interrupted: a signal has stopped them. Otherwise what `evaluate` raises.
    """
    from ups.pipeline.exchange import Said
    from ups.pipeline.launch import how_to_start, run_ranks
    from ups.pipeline.rank import Scoring
    from ups.training.evaluate import SplitErrors, leave_scores, picture_of
    from ups.training.evaluate import evaluate as evaluate_alone
    from ups.training.scored_batch import num_batches

    by_problem = config.by_problem()
    nums = {name: num_batches(own, test[name]) for name, own in by_problem.items()}
    num = min(num, sum(nums.values()))
    if num <= 1:
        return evaluate_alone(config, checkpoint, test, encoders, run_dir)
    found = {name: InOrder(SplitErrors(own)) for name, own in by_problem.items()}
    said = Said(num, {"batch": lambda _rank, value: found[value[0]].take(*value[1:])})
    method = how_to_start(num, beside_threads=config.cache.remote is not None)  # which may push
    log.info("scoring in %d ranks (%s)", num, method)
    of_problems = {name: encoder.to_manifest() for name, encoder in encoders.items()}
    work = Scoring(config, checkpoint, test, of_problems, nums)
    run_ranks(work, num, method, said, None, "scoring was stopped; a retry scores anew")
    assert all(errors.num == nums[name] for name, errors in found.items()), "all were scored"
    scores = {
        name: errors.whole.scores(picture_of(run_dir, name, by_problem))
        for name, errors in found.items()
    }
    return leave_scores(scores, run_dir)


class InOrder:
    """Adds batches up in the order of their numbers, in whichever they come.

    Attributes:
        num: how many are added up.
    """

    def __init__(self, whole: SplitErrors) -> None:
        self.whole, self.num = whole, 0
        self._early: dict[int, ScoredBatch] = {}

    def take(self, number: int, batch: ScoredBatch) -> None:
        """Take one of them."""
        self._early[number] = batch
        while self.num in self._early:
            self.whole.add(self._early.pop(self.num))
            self.num += 1
