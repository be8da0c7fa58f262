"""In which order contenders are measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def in_turn(contenders: Sequence[T], repeat: int) -> tuple[T, ...]:
    """The order of a round: each round is a row of a balanced Latin square.

    Over as many rounds as there are contenders (twice as many for an odd number) each one takes
    every place equally often, and follows every other equally often, so that what a run leaves
    behind favours none. Source: E. J. Williams (1949), for carry-over of first order.

    Args:
        repeat: from 1.
    """
    num = len(contenders)
    zigzag = [(i + 1) // 2 if i % 2 else (num - i // 2) % num for i in range(num)]
    order = [contenders[(i + repeat - 1) % num] for i in zigzag]
    is_mirrored = num % 2 == 1 and repeat % 2 == 0
    return tuple(reversed(order) if is_mirrored else order)
