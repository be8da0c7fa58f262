"""No contender is favoured by what the one before it leaves behind."""

from collections import Counter
from itertools import pairwise

import pytest

from ups.startup.order import in_turn
from ups.startup.scenarios import choose


@pytest.mark.parametrize("num", range(1, 12))
def test_each_contender_takes_every_place_and_follows_every_other_equally_often(num):
    num_rounds = num if num % 2 == 0 else 2 * num
    rounds = [in_turn(range(num), repeat) for repeat in range(1, num_rounds + 1)]
    assert all(sorted(r) == list(range(num)) for r in rounds)
    times = num_rounds // num
    places = Counter((one, place) for r in rounds for place, one in enumerate(r))
    assert set(places.values()) == {times}
    follows = Counter(pair for r in rounds for pair in pairwise(r))
    assert len(follows) == num * (num - 1)
    assert set(follows.values()) <= {times}


def test_the_nightly_set_has_cold_behind_another_one_in_each_round():
    chosen = choose(["nightly"], has_gpu=False)
    before = []
    for repeat in range(1, 5):
        order = [s.name for s in in_turn(chosen, repeat)]
        place = order.index("cold")
        before.append(order[place - 1] if place else "first")
    assert sorted(before) == ["changed-config", "first", "legacy", "warm"]
