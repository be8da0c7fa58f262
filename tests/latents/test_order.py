"""The order of the first epoch: whole, windowed, and the same on every machine."""

import numpy as np
import pytest

from ups.latents.order import CHUNK_ROWS, arrival_turns, first_epoch_windows


@pytest.mark.parametrize("num", [1, 15, 16, 17, 160, 1000])
def test_every_trajectory_is_in_one_window_and_windows_grow_to_eight_chunks(num):
    windows = first_epoch_windows(num, seed=3)
    assert sorted(np.concatenate(windows).tolist()) == list(range(num))
    turns = arrival_turns(num, seed=3)[np.concatenate(windows)]
    assert (np.diff(turns) >= 0).all()
    assert set(turns.tolist()) == set(range(-(-num // CHUNK_ROWS)))
    sizes = [len({row // CHUNK_ROWS for row in window.tolist()}) for window in windows]
    assert sizes[:-1] == [1, 1, 2, 4, 8, 8, 8, 8, 8, 8, 8, 8][: len(sizes) - 1]
    assert sizes[-1] <= 8


def test_the_order_is_the_seeds():
    assert first_epoch_windows(64, 0)[0].tolist() == list(range(32, 48))
    assert arrival_turns(64, 0).tolist() != arrival_turns(64, 1).tolist()
