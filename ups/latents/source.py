"""Rows of a file that is there, or on its way: what of it is needed, and when."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from ups.config import SPLITS, ProblemConfig, Split
from ups.data.coming import ComingObject
from ups.data.cuts import Want
from ups.data.letting_go import Backlog, LettingGo
from ups.data.pdebench import TrajectoryFile
from ups.data.sources import Staged
from ups.latents.key import ENCODED_SPLITS
from ups.latents.order import arrival_turns


@dataclass(slots=True)
class Source:
    """Rows of a file that is there, or on its way.

    Attributes:
        problem: the config of its problem.
        staged: of a file on its way, without what is known only once it is there.
        turns: (n,), when each of its trajectories is to arrive.
    """

    problem: ProblemConfig
    staged: Staged
    file: TrajectoryFile
    coming: ComingObject | None
    turns: NDArray[np.int64]

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Where the bytes are that are encoded together."""
        num, step = self.file.num_trajectories, self.problem.training.encode_batch_size
        for first in range(0, num, step):
            yield self.file.bytes_of(first, min(first + step, num))


Sources = Mapping[Split, Sequence[Source]]


def reading(coming: ComingObject, sources: Sources, splits: Sequence[Split]) -> list[Source]:
    """Those of some splits that are rows of an object."""
    return [source for split in splits for source in sources[split] if source.coming is coming]


def give_turns(sources: Sources, seed: int) -> None:
    """The fit's rows come at turn 0; train as the first epoch meets it; then val; then test."""
    after = 1
    for split in SPLITS:
        sizes = [source.file.num_trajectories for source in sources[split]]
        turns = np.zeros(sum(sizes), np.int64)
        if split == "train":
            turns = arrival_turns(sum(sizes), seed)
        turns += after
        after = int(turns.max(initial=after)) + 1
        for source, end in zip(sources[split], accumulate(sizes), strict=True):
            source.turns = turns[end - source.file.num_trajectories : end]


def what_is_wanted(
    coming: ComingObject, sources: Sources, fit: Sequence[tuple[Source, int]]
) -> list[Want]:
    """What is wanted of an object, and when.

    Args:
        fit: sources, and rows of them that the encoders are fitted to.
    """
    wants = [Want(0, *s.file.bytes_of(row, row + 1)) for s, row in fit if s.coming is coming]
    for source in reading(coming, sources, SPLITS):
        for lo, hi in _runs(source.turns):
            wants.append(Want(int(source.turns[lo]), *source.file.bytes_of(lo, hi)))
    return wants


def what_is_needed(coming: ComingObject, sources: Sources, backlog: Backlog) -> LettingGo:
    """What is needed of an object that is not to be kept: what is encoded, and test."""
    of_chunks = [source.chunks() for source in reading(coming, sources, ENCODED_SPLITS)]
    kept = []
    for source in reading(coming, sources, ("test",)):
        (start, end), total = source.file.data_bytes, coming.num_bytes
        rows = source.file.bytes_of(0, source.file.num_trajectories)
        kept += [rows, (0, start), (end, total)]  # and what describes them
    blocks = coming.info.blocks
    size = None if blocks is None else blocks.num_bytes
    needed = [place for chunks in of_chunks for place in chunks]
    return LettingGo(coming.num_bytes, size, kept, needed, backlog)


def _runs(turns: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """[lo, hi) of rows with one turn."""
    borders = [0, *(np.flatnonzero(np.diff(turns)) + 1).tolist(), len(turns)]
    return pairwise(borders)
