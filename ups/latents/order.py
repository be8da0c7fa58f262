"""The order in which the first epoch meets the trajectories, and a cold start fetches them.

Chunks of trajectories come in an order that the seed gives, a window of them after the other; what
an epoch takes is shuffled within a window. So the first step needs one chunk, and not the data set.
The first windows are short, for an early first step, and each holds as many chunks as all before
it, up to `WINDOW_CHUNKS`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ups.config import ProblemConfig

CHUNK_ROWS = 16  # trajectories; 13 MB of PDEBench's own
WINDOW_CHUNKS = 8


def first_epoch_windows(num: int, seed: int) -> list[NDArray[np.int64]]:
    """The trajectories of each window, chunk after chunk, each trajectory in one window.

    A function of its arguments alone: the same on every machine, and whether data stream or not.

    Args:
        num: trajectories of train, N.
        seed: of the training.
    """
    chunks = _chunks(num, seed)
    windows, first, size = [], 0, 1
    while first < len(chunks):
        rows = [
            np.arange(chunk * CHUNK_ROWS, min((chunk + 1) * CHUNK_ROWS, num))
            for chunk in chunks[first : first + size].tolist()
        ]
        windows.append(np.concatenate(rows))
        first += size
        size = min(first, WINDOW_CHUNKS)
    return windows


def arrival_turns(num: int, seed: int) -> NDArray[np.int64]:
    """(N,) when each trajectory of train is met in the first epoch: the number of its chunk."""
    chunks = _chunks(num, seed)
    turns = np.empty_like(chunks)
    turns[chunks] = np.arange(len(chunks))
    return turns.repeat(CHUNK_ROWS)[:num]


def _chunks(num: int, seed: int) -> NDArray[np.int64]:
    """The chunks of N trajectories as the first epoch meets them."""
    return np.random.default_rng(seed).permutation(-(-num // CHUNK_ROWS))


def fit_rows(config: ProblemConfig, num: int) -> tuple[NDArray[np.int64], np.random.Generator]:
    """Which of N trajectories of train the encoder is fitted to, and the dice after that."""
    rng = np.random.default_rng(config.encoder.fit_seed)
    num_fit = min(config.encoder.fit_trajectories, num)
    return np.sort(rng.choice(num, num_fit, replace=False)), rng
