"""How often noise alone gets a verdict of worse, and a slowdown none: on many made-up histories."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.startup.judge.histories import (
    DEFAULTS,
    MEASURED,
    measured_night,
    nights,
    seeds,
    slower_download,
    verdict_of,
    with_waits,
)
from ups.startup.judge.verdict import judge

NUM_DRAWN = 400
NUM_CALM = 200


def shares_worse(num_nights, *, slower_by=1.0, waits_slower_by=1.0, **scatter):
    """Of made-up histories with so many benchmarks before: of TTFS alone, of it or idle seconds.

    A run waits for rows as long as its first step took, longer and shorter on nights of their own.
    """
    change = slower_download(4.1 * (slower_by - 1), since=num_nights)
    num_alone = num_either = 0
    for seed in range(NUM_DRAWN):
        made = nights(num_nights + 1, seed=seed, change=change, **scatter)
        if verdict_of(made).kind == "worse":
            num_alone, num_either = num_alone + 1, num_either + 1
            continue
        made = with_waits(made, 4.1, seed=seed, factor_of_last=waits_slower_by, **scatter)
        num_either += verdict_of(made, figure="idle").kind == "worse"
    return num_alone / NUM_DRAWN, num_either / NUM_DRAWN


@pytest.mark.parametrize("num_nights", [1, 10])
@pytest.mark.parametrize(
    ("noise", "between", "most"),
    [(0.05, 0.05, 0.005), (0.05, 0.15, 0.02), (0.15, 0.15, 0.025), (0.2, 0.2, 0.04)],
)
def test_false_alarms_are_rare(noise, between, most, num_nights):
    """A bound on the share called worse, by either figure, though nothing changed but the night."""
    ttfs_alone, either = shares_worse(num_nights, noise=noise, between=between)
    assert either <= most
    assert either <= ttfs_alone + 1 / NUM_DRAWN  # 2 more where both have the same limit


@pytest.mark.parametrize(
    ("num_nights", "calm", "restless"), [(1, 0.95, 0.75), (4, 0.99, 0.75), (10, 0.99, 0.8)]
)
def test_most_doublings_are_found(num_nights, calm, restless):
    """The power: the share of runs of twice the time that is called worse."""
    assert shares_worse(num_nights, slower_by=2, noise=0.05, between=0.05)[0] >= calm
    assert shares_worse(num_nights, slower_by=2, noise=0.05, between=0.15)[0] >= restless


@pytest.mark.parametrize(("num_nights", "least"), [(1, 0.8), (4, 0.95), (10, 0.99)])
def test_most_doublings_of_the_idle_seconds_alone_are_found(num_nights, least):
    ttfs, either = shares_worse(num_nights, waits_slower_by=3, noise=0.05, between=0.05)
    assert ttfs <= 0.005
    assert either >= least


@settings(max_examples=40, deadline=None)
@given(seeds, st.sampled_from([1, 3, 5]), st.integers(6, 20))
def test_a_little_noise_is_unchanged(seed, repeats, num):
    runs = nights(num, seed=seed, noise=0.015, repeats=repeats)
    assert verdict_of(runs).kind in ("unchanged", "no verdict yet")


@settings(max_examples=30, deadline=None)
@given(seeds, st.sampled_from([1, 3, 5]))
def test_twice_the_time_is_worse_in_any_noise_of_five_percent(seed, repeats):
    runs = nights(24, seed=seed, noise=0.05, repeats=repeats, change=slower_download(4.1, since=23))
    verdict = verdict_of(runs)
    assert (verdict.kind, verdict.phase) == ("worse", "download")


def found_worse(scenario, num_nights, seed, slower=None):
    """The verdict of a night in measured noise; if it is worse, of as many runs again, too."""
    rng = np.random.default_rng([seed, list(MEASURED).index(scenario)])
    before = [measured_night(scenario, rng, night) for night in range(num_nights)]
    now = measured_night(scenario, rng, num_nights, repeats=10, slower=slower)
    verdict = judge(scenario, now[:5], before, DEFAULTS)
    return judge(scenario, now, before, DEFAULTS) if verdict.kind == "worse" else verdict


@pytest.mark.parametrize("phase", ["queue", "boot", "download", "load", "first step"])
def test_a_cold_start_slower_by_300_ms_in_one_phase_is_found_after_ten_calm_benchmarks(phase):
    verdicts = [found_worse("cold", 10, seed, {phase: 0.3}) for seed in range(40)]
    found = [verdict for verdict in verdicts if verdict.kind == "worse"]
    assert len(found) >= 36
    assert sum(verdict.phase == phase for verdict in found) >= 0.95 * len(found)


def test_of_calm_benchmarks_of_four_scenarios_at_most_one_in_200_is_called_worse():
    alarms = [
        seed
        for seed in range(NUM_CALM)
        if any(found_worse(scenario, 10, seed).kind == "worse" for scenario in MEASURED)
    ]
    assert len(alarms) <= NUM_CALM / 200
