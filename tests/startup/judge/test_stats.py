import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ups.errors import ShapeError
from ups.startup.judge.stats import bootstrap_difference, bootstrap_ratio, mad

times = st.lists(st.floats(0.01, 1e3), min_size=1, max_size=9)


def test_mad_is_scaled_to_sigma_for_known_values_and_for_normal_noise():
    assert mad([1.0, 2.0, 4.0, 7.0, 100.0]) == pytest.approx(1.4826 * 3.0)
    noise = np.random.default_rng(0).normal(5.0, 0.3, 20_000)
    assert mad(list(noise)) == pytest.approx(0.3, rel=0.02)


@pytest.mark.parametrize("function", [mad, bootstrap_ratio, bootstrap_difference])
def test_no_runs_are_refused(function):
    two_sided = function in (bootstrap_ratio, bootstrap_difference)
    for samples in [([], [1.0]), ([1.0], [])] if two_sided else [([],)]:
        with pytest.raises(ShapeError, match="no runs .* at least one is needed"):
            function(*samples)


@pytest.mark.parametrize(
    ("bootstrap", "value", "low", "high"),
    [
        (bootstrap_ratio, 3.0, 5.8 / 2.1, 6.2 / 1.9),
        (bootstrap_difference, 4.0, 5.8 - 2.1, 6.2 - 1.9),
    ],
)
def test_two_are_compared_first_over_or_less_second(bootstrap, value, low, high):
    found = bootstrap([6.0, 6.2, 5.8, 6.1, 5.9], [2.0, 2.1, 1.9, 2.05, 1.95])
    assert found.value == pytest.approx(value)
    assert low <= found.low < value < found.high <= high


@given(times, times)
def test_an_interval_lies_in_what_was_seen_and_depends_on_neither_chance_nor_order(a, b):
    ratio = bootstrap_ratio(a, b, resamples=50)
    again = bootstrap_ratio(a[::-1], sorted(b), resamples=50)
    assert repr(ratio) == repr(again)  # NaN differs from itself
    if min(len(a), len(b)) > 1:
        assert min(a) / max(b) * 0.999 <= ratio.low <= ratio.high <= max(a) / min(b) * 1.001
    else:
        assert math.isnan(ratio.low)
        assert math.isnan(ratio.high)


def test_an_interval_holds_the_truth_as_often_as_its_level_says():
    rng = np.random.default_rng(1)
    num = 300
    held = {0.5: 0, 0.95: 0}
    for _ in range(num):
        a, b = rng.normal(4.0, 0.4, 25), rng.normal(2.0, 0.2, 25)
        for level in held:
            ratio = bootstrap_ratio(a, b, resamples=300, level=level)
            held[level] += ratio.low <= 2.0 <= ratio.high
    assert 0.91 <= held[0.95] / num <= 0.99
    assert 0.42 <= held[0.5] / num <= 0.64


@pytest.mark.parametrize(("num", "share"), [(2, 0.67), (3, 0.90)])
def test_of_few_runs_an_interval_holds_the_truth_less_often(num, share):
    rng = np.random.default_rng(7)
    held = 0
    for _ in range(300):
        found = bootstrap_difference(rng.normal(size=num), rng.normal(size=num), resamples=400)
        held += found.low <= 0 <= found.high
    assert held / 300 == pytest.approx(share, abs=0.06)


def test_one_wild_run_does_not_move_the_ratio_but_widens_its_interval():
    calm = bootstrap_ratio([4.0, 4.1, 4.2], [2.0, 2.0, 2.0])
    wild = bootstrap_ratio([4.0, 4.1, 90.0], [2.0, 2.0, 2.0])
    assert wild.value == calm.value
    assert wild.high > 10 * calm.high


def test_a_median_of_no_seconds_has_an_infinite_ratio_without_a_warning():
    ratio = bootstrap_ratio([1.0, 2.0], [0.0, 0.0])
    assert ratio.value == ratio.high == math.inf


def test_resamples_make_the_interval_steadier():
    a, b = [4.0, 4.4, 4.1, 4.9, 3.8], [2.0, 2.3, 1.9, 2.2, 2.1]
    few, many = (
        np.std([bootstrap_ratio(a, b, resamples=num, seed=seed).low for seed in range(30)])
        for num in (40, 4000)
    )
    assert many < few / 2
