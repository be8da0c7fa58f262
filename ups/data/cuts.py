"""Into which ranges an object is cut, and when the turn of each comes."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

MIB = 1 << 20
# What is wanted first comes in short ranges, so that all threads bring the first of it together.
EARLY_BYTES = 64 * MIB
EARLY_RANGE_BYTES = MIB

Interval = tuple[int, int]
"""Bytes [start, end) of an object."""


class Want(NamedTuple):
    """Bytes [start, end) of an object that somebody waits for, before those of a higher `turn`."""

    turn: int
    start: int
    end: int


def cut(
    total: int, range_bytes: int, arrived: Sequence[Interval], wants: Sequence[Want]
) -> tuple[list[int], list[int]]:
    """Starts and ends of ranges that cover an object: each there or not, wanted or not."""
    borders = {0, total, *(at for interval in arrived for at in interval)}
    early = 0
    for _, start, end in sorted(wants):
        step = EARLY_RANGE_BYTES if early < EARLY_BYTES else range_bytes
        borders.update(_steps(start, end, step), (end,))
        early += end - start
    ordered = sorted(borders)
    starts = [
        at for start, end in itertools.pairwise(ordered) for at in _steps(start, end, range_bytes)
    ]
    return starts, [*starts[1:], total][: len(starts)]


def _steps(start: int, end: int, step: int) -> Iterator[int]:
    """Starts of the parts of [start, end) of at most `step` bytes.

    Where there are several, the second begins at a multiple of `step`, as the blocks do that are
    compared with digests.
    """
    second = start + step if end - start <= step else start - start % step + step
    return itertools.chain((start,), range(second, end, step)) if start < end else iter(())


def turns_of(starts: Sequence[int], wants: Sequence[Want]) -> list[int]:
    """When each range is to come: with the first that wants it, or after all of them."""
    turns = [max((want.turn for want in wants), default=0) + 1] * len(starts)
    for turn, start, end in sorted(wants, reverse=True):
        first, last = bisect.bisect_left(starts, start), bisect.bisect_left(starts, end)
        turns[first:last] = [turn] * (last - first)
    return turns


def holds(intervals: Sequence[Interval], at: int) -> bool:
    """Whether a byte is in one of these intervals, which are in order."""
    place = bisect.bisect_right(intervals, at, key=lambda interval: interval[0])
    return place > 0 and at < intervals[place - 1][1]


def without(intervals: Sequence[Interval], others: Sequence[Interval]) -> list[Interval]:
    """What of these intervals is in none of the others; both are in order."""
    borders = sorted({at for interval in (*intervals, *others) for at in interval})
    parts = itertools.pairwise(borders)
    return joined(
        (start, end) for start, end in parts if holds(intervals, start) and not holds(others, start)
    )


def stretches(pieces: Mapping[int, int]) -> list[Interval]:
    """Pieces, start → length, in order, those that touch made one."""
    return joined((start, start + pieces[start]) for start in sorted(pieces))


def joined(intervals: Iterable[Interval]) -> list[Interval]:
    """Sorted intervals, those that touch made one."""
    found: list[Interval] = []
    for start, end in intervals:
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        elif start < end:
            found.append((start, end))
    return found
