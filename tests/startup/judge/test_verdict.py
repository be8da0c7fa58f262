"""Verdicts on made-up histories: what must be reported is, and what is only noise is not."""

import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.startup.judge.histories import (
    DEFAULTS,
    NIGHT_S,
    longer,
    nights,
    run_of,
    scaled,
    seeds,
    slower_download,
    verdict_of,
    with_waits,
)
from ups.startup.judge.limits import END, Thresholds
from ups.startup.judge.verdict import Verdict, judge, judge_benchmark

# No change


def test_the_same_as_ever_is_unchanged_and_so_is_a_step_below_the_threshold():
    verdict = verdict_of(nights(8))
    assert (verdict.kind, verdict.phase, verdict.moved_phases) == ("unchanged", None, ())
    assert (verdict.num_before, verdict.num_benchmarks, verdict.num_now) == (35, 7, 5)
    assert verdict_of(nights(8, change=slower_download(0.1, since=7))).kind == "unchanged"


def test_the_more_benchmarks_were_alike_the_less_has_to_change_and_a_verdict_says_how_much():
    verdicts = [verdict_of(nights(num + 1)) for num in (1, 2, 4, 10, 30)]
    assert re.search(
        r"^cold: unchanged: TTFS .* \(limit \S+ s, median of 5 runs of 1 benchmark before\)$",
        verdicts[0].message,
    )
    limits = [verdict.limit_s / verdict.before_s for verdict in verdicts]
    assert limits == sorted(limits, reverse=True)
    assert 1.5 < limits[0] < 1.75
    assert limits[-1] < 1.25


@pytest.mark.parametrize(("seconds", "kind"), [(0.34, "unchanged"), (0.36, "worse")])
def test_a_change_that_nobody_cares_about_is_unchanged_however_clear(seconds, kind):
    before = [[run_of(night, extra={"boot": 0.20 - 4.1})] for night in range(9)]
    assert judge("cold", [run_of(extra={"boot": seconds - 4.1})], before, DEFAULTS).kind == kind


# Steps


@pytest.mark.parametrize(("step_s", "kind"), [(3.15, "worse"), (-2.0, "improved")])
def test_a_step_beyond_the_threshold_names_the_phase_and_how_far_it_moved(step_s, kind):
    verdict = verdict_of(nights(8, change=slower_download(step_s, since=7), noise=0.01))
    assert (verdict.kind, verdict.phase) == (kind, "download")
    of_ttfs, of_phase = (4.1, 4.1 + step_s), (1.2, 1.2 + step_s)
    assert (verdict.before_s, verdict.after_s) == pytest.approx(of_ttfs, rel=0.05)
    assert (verdict.phase_before_s, verdict.phase_after_s) == pytest.approx(of_phase, rel=0.05)


def test_a_slowdown_is_reported_until_those_before_it_have_left_the_window():
    for night in range(7, 14):
        runs = nights(night + 1, change=slower_download(3.0, since=7))
        assert verdict_of(runs).kind == "worse", night
    runs = nights(7 + DEFAULTS.window + END, change=slower_download(3.0, since=7))
    assert verdict_of(runs).kind == "unchanged"


@pytest.mark.parametrize(("last_s", "noise"), [(3.0, 0.02), (2.2, 0.01)])
def test_a_fall_back_soon_after_an_improvement_is_worse_even_if_not_as_slow_as_before(
    last_s, noise
):
    extra_s = [3.0] * 12 + [0.0] * 3 + [last_s]
    runs = nights(16, noise=noise, change=lambda night: {"download": extra_s[night]})
    assert verdict_of(runs[:13]).kind == "improved"
    verdict = verdict_of(runs)
    assert (verdict.kind, verdict.phase, verdict.reference) == ("worse", "download", "newest")
    assert verdict.num_benchmarks == END
    assert "median of the newest 15 runs of 3 benchmarks before" in verdict.message


@pytest.mark.parametrize(("noise", "kind"), [(0.25, "unchanged"), (0.01, "worse")])
def test_noise_as_large_as_the_change_hides_it(noise, kind):
    runs = nights(12, noise=noise, seed=3, change=slower_download(1.2, since=11))
    assert verdict_of(runs).kind == kind


@settings(max_examples=60, deadline=None)
@given(seeds, st.floats(0, 1), st.floats(0, 2))
def test_more_than_three_times_as_long_is_worse_whatever_the_history(seed, noise, between):
    history = nights(12, seed=seed, noise=noise, between=between)
    of_all = np.median([np.median([run.ttfs_s for run in runs]) for runs in history])
    now = [scaled(run_of(99), 3.01 * of_all / 4.1)]
    assert judge("cold", now, history, DEFAULTS).kind == "worse"


def test_without_that_a_scatter_taken_too_large_would_excuse_everything():
    wide = DEFAULTS.model_copy(update={"between": 1.0})
    runs = nights(3, change=slower_download(9.5, since=2))
    assert verdict_of(runs, wide).kind == "worse"
    assert verdict_of(runs, wide.model_copy(update={"certain": 9.0})).kind == "unchanged"


# Drift


@pytest.mark.parametrize("seed", range(5))
def test_a_drift_that_adds_up_to_more_than_the_threshold_over_the_window_is_worse(seed):
    """25 % over the window: 0.03 s a night, a twentieth of what one night may be slower."""
    num = DEFAULTS.window
    runs = nights(
        num + 1, seed=seed, noise=0.01, change=lambda night: {"download": 0.25 * 4.1 * night / num}
    )
    verdict = verdict_of(runs)
    assert (verdict.kind, verdict.phase, verdict.reference) == ("worse", "download", "oldest")
    assert "median of 15 runs of 3 benchmarks, the oldest of the window" in verdict.message


@pytest.mark.parametrize("repeats", [1, 3, 5])
def test_one_percent_a_night_is_found_within_forty_nights_whatever_the_repeats(repeats):
    drift = {"change": lambda night: {"download": 4.1 * (1.01**night - 1)}, "noise": 0.01}
    drifts = [nights(40, seed=seed, repeats=repeats, **drift) for seed in range(50)]
    assert sum(verdict_of(runs).kind == "worse" for runs in drifts) >= 49


def test_a_drift_is_not_lost_in_a_history_longer_than_the_window():
    for num in 60, 61, 62:
        runs = nights(num, noise=0.01, change=lambda night: {"boot": 0.08 * night})
        assert verdict_of(runs).kind == "worse", num


def test_a_drift_to_faster_is_improved():
    runs = nights(18, noise=0.01, change=lambda night: {"download": -0.065 * night})
    assert verdict_of(runs).kind == "improved"


# Outliers


@pytest.mark.parametrize("factor", [0.05, 30.0])
@pytest.mark.parametrize("step_s", [0.0, 3.0])
@pytest.mark.parametrize("num", [4, 12])
def test_one_wild_run_changes_no_verdict(factor, step_s, num):
    runs = nights(num, change=slower_download(step_s, since=num - 1))
    expected = verdict_of(runs)
    assert expected.kind == ("worse" if step_s else "unchanged")
    for night, of_night in enumerate(runs):
        for index, run in enumerate(of_night):
            wild = run.model_copy(update={"ttfs_s": factor * run.ttfs_s})
            others = [*of_night[:index], wild, *of_night[index + 1 :]]
            found = verdict_of([*runs[:night], others, *runs[night + 1 :]])
            assert found.kind == expected.kind, (night, index)


def test_one_wild_night_in_the_history_does_not_widen_the_limits():
    for wild_s in 0.0, 20.0:
        extra_s = {5: wild_s, 11: 0.3}
        runs = nights(12, noise=0.01, change=lambda n, s=extra_s: {"download": s.get(n, 0.0)})
        assert verdict_of(runs).kind == "worse"


# Too little to judge by


def test_without_a_run_before_or_a_new_one_there_is_no_verdict_yet():
    verdict = judge("cold", [], nights(9), DEFAULTS)
    assert verdict.message == "cold: no verdict yet: no run to judge"
    verdict = judge("cold", nights(1)[0], [], DEFAULTS)
    assert (verdict.before_s, verdict.limit_s, verdict.num_before) == (None, None, 0)
    assert verdict.message == (
        f"cold: no verdict yet: TTFS {verdict.after_s:.2f} s (0 runs of 0 benchmarks before, "
        "fewer than 5)"
    )


def test_too_little_history_is_no_verdict_yet_even_if_it_is_far_slower():
    runs = nights(5, repeats=1, change=slower_download(50.0, since=4))
    verdict = verdict_of(runs)
    assert (verdict.kind, verdict.num_before) == ("no verdict yet", 4)
    assert verdict_of(runs, Thresholds(least_runs=4)).kind == "worse"


def test_runs_of_other_scenarios_count_for_nothing():
    others = [run_of(night, scenario="legacy", extra={"boot": 30.0}) for night in range(20)]
    (now,) = nights(1, first=9)
    verdict = judge("cold", [*others, *now], [*nights(9), others], DEFAULTS)
    assert (verdict.kind, verdict.num_before, verdict.num_now) == ("unchanged", 45, 5)
    assert verdict.num_benchmarks == 9
    full = judge("cold", now, [*nights(9), others], Thresholds(window=9))
    assert full.num_benchmarks == 9  # what did not run it takes no place in the window


def of_night(benchmark, night, **fields):
    """A benchmark of one night; its downloads are slower since the seventh."""
    (runs,) = nights(1, first=night, change=slower_download(9.0, since=7))
    return benchmark(id=f"b{night}", started_at=night * NIGHT_S - 5, runs=runs, **fields)


@pytest.mark.parametrize("other", [{"machine_id": "m2"}, {"settings": {"num_trajectories": 2048}}])
def test_another_machine_or_other_settings_are_no_history(benchmark, other):
    history = [of_night(benchmark, night, **(other if night < 7 else {})) for night in range(8)]
    few = Thresholds(least_runs=6)  # one benchmark is the stranger's
    (verdict,) = judge_benchmark(of_night(benchmark, 8), history, few)
    assert verdict.kind == "no verdict yet"
    (verdict,) = judge_benchmark(of_night(benchmark, 8, **other), history, few)
    assert verdict.kind == "worse"


def test_earlier_benchmarks_are_the_history_whatever_the_order_of_their_settings(benchmark):
    settings = {"num_trajectories": 64, "page cache": "kept"}
    reordered = dict(reversed(settings.items()))
    history = [of_night(benchmark, night, settings=reordered) for night in range(12)]
    (verdict,) = judge_benchmark(of_night(benchmark, 4, settings=settings), history, DEFAULTS)
    assert (verdict.kind, verdict.num_benchmarks) == ("unchanged", 4)


# What holds of every verdict


def random_history(seed):
    rng = random.Random(seed)
    step_s = rng.choice([0.0, 0.5, 3.0, -1.0])
    num, repeats = rng.randint(3, 20), rng.choice([1, 3, 5])
    since, noise = rng.randint(0, num), rng.choice([0.0, 0.02, 0.2])
    change = slower_download(step_s, since)
    return nights(num, seed=seed, noise=noise, repeats=repeats, change=change)


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(-6, 10))
def test_the_unit_of_time_makes_no_difference(seed, exponent):
    benchmarks = random_history(seed)
    factor = 2.0**exponent
    scales = {name: factor * getattr(DEFAULTS, name) for name in ("least_s", "phase_least_s")}
    other_unit = DEFAULTS.model_copy(update=scales)
    verdict = verdict_of(benchmarks)
    scaled_verdict = verdict_of([[scaled(r, factor) for r in b] for b in benchmarks], other_unit)
    assert (scaled_verdict.kind, scaled_verdict.phase) == (verdict.kind, verdict.phase)
    if verdict.limit_s is not None:
        assert scaled_verdict.limit_s == pytest.approx(factor * verdict.limit_s, rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(seeds, st.randoms(use_true_random=False))
def test_the_order_in_which_runs_are_given_makes_no_difference(seed, rng):
    *before, now = random_history(seed)
    shuffled_now = rng.sample(now, len(now))
    shuffled = [rng.sample(runs, len(runs)) for runs in rng.sample(before, len(before))]
    expected = judge("cold", now, before, DEFAULTS)
    assert judge("cold", shuffled_now, shuffled, DEFAULTS) == expected


@settings(max_examples=60, deadline=None)
@given(seeds, st.floats(0, 20))
def test_slower_runs_never_get_a_better_verdict(seed, seconds):
    *before, now = random_history(seed)
    order = ["improved", "unchanged", "worse"]
    slower = [longer(run, seconds, boot=run.phases["boot"] + seconds) for run in now]
    kinds = [judge("cold", runs, before, DEFAULTS).kind for runs in (now, slower)]
    if "no verdict yet" in kinds:
        assert kinds[0] == kinds[1]
    else:
        assert order.index(kinds[1]) >= order.index(kinds[0])


@settings(max_examples=40, deadline=None)
@given(seeds)
def test_the_figures_of_a_verdict_bear_it_out(seed):
    verdict = verdict_of(random_history(seed))
    if verdict.phase_limit_s is not None:
        assert verdict.kind == "worse"
        assert verdict.phase_before_s < verdict.phase_limit_s < verdict.phase_after_s
        assert verdict.before_s < verdict.after_s <= verdict.limit_s
    elif verdict.kind == "worse":
        assert verdict.before_s < verdict.limit_s < verdict.after_s
    elif verdict.kind == "improved":
        assert verdict.before_s > verdict.limit_s > verdict.after_s
    elif verdict.kind == "unchanged":
        assert abs(verdict.after_s - verdict.before_s) <= verdict.limit_s - verdict.before_s + 1e-9
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict
    assert verdict.message.startswith(f"cold: {verdict.kind}: ")


# Phases


def test_the_phase_that_moved_most_is_named_not_the_longest_nor_one_that_got_faster():
    runs = nights(
        8,
        change=lambda n: {"boot": 3.0, "download": 1.5, "load": -0.9} if n == 7 else {"load": 1.0},
    )
    assert verdict_of(runs).phase == "boot"


@pytest.mark.parametrize("figure", ["TTFS", "idle"])
@pytest.mark.parametrize(
    ("download_s", "named"), [(6.3, "download"), (0.5, "load")], ids=["slow store", "slow load"]
)
def test_what_a_slow_phase_kept_waiting_is_not_named_in_its_place(figure, download_s, named):
    runs = with_waits(
        nights(8, change=lambda n: {"download": download_s, "load": 6.5} if n == 7 else {}), 0.0
    )
    assert verdict_of(runs, figure=figure).phase == named


def test_a_phase_that_was_not_there_before_took_no_time():
    verdict = verdict_of(nights(8, noise=0.0, change=lambda n: {"cache": 2.0} if n == 7 else {}))
    assert (verdict.phase, verdict.phase_before_s, verdict.phase_after_s) == ("cache", 0.0, 2.0)


def test_phases_that_no_longer_overlap_are_worse_without_a_phase_to_blame():
    runs = nights(8, noise=0.0)
    apart = [longer(run, 2.0) for run in runs[-1]]
    verdict = judge("cold", apart, runs[:-1], DEFAULTS)
    assert (verdict.kind, verdict.phase, verdict.phase_after_s) == ("worse", None, None)
    assert verdict.message.startswith("cold: worse: no single phase; TTFS 4.10 -> 6.10 s")


def test_a_phase_that_another_makes_up_for_is_noted_and_no_failure():
    runs = nights(
        8, noise=0.0, change=lambda n: {"download": 0.8, "first step": -0.8} if n == 7 else {}
    )
    verdict = verdict_of(runs)
    assert [(p.phase, p.after_s > p.limit_s) for p in verdict.moved_phases] == [
        ("download", True),
        ("first step", False),
    ]
    assert verdict.message.startswith("cold: unchanged: TTFS 4.10 -> 4.10 s ")
    assert verdict.message.endswith("; yet download 1.20 -> 2.00 s, first step 1.80 -> 1.00 s")


def test_a_message_names_scenario_phase_before_after_limit_and_runs():
    before = [[run_of(night)] for night in range(20)]
    now = [run_of(20, repeat, extra={"download": 3.15}) for repeat in range(3)]
    verdict = judge("cold", now, before, DEFAULTS)
    assert verdict.message == (
        "cold: worse: download 1.20 -> 4.35 s; TTFS 4.10 -> 7.25 s "
        "(limit 4.90 s, median of 20 runs of 20 benchmarks before)"
    )


def test_a_phase_beyond_its_own_limit_is_worse_though_the_whole_is_not_and_says_its_limit():
    verdict = verdict_of(nights(11, change=slower_download(0.3, since=10)))
    assert (verdict.kind, verdict.phase) == ("worse", "download")
    assert verdict.after_s < verdict.limit_s
    assert re.fullmatch(
        r"cold: worse: download 1\.2\d -> 1\.4\d s \(its limit 1\.4\d s\); TTFS 4\.\d+ -> 4\.\d+ s "
        r"\(limit 5\.\d\d s, median of 50 runs of 10 benchmarks before\)",
        verdict.message,
    )


def test_a_phase_is_judged_from_the_fifth_benchmark_before_on():
    for num, kind in (4, "unchanged"), (5, "worse"):
        assert verdict_of(nights(num + 1, change=slower_download(0.5, since=num))).kind == kind


# Thresholds


LOOSE = {"relative": 1.0, "sigmas": 60.0, "least_s": 4.0, "between": 1.0, "window": 5}
LOOSE_OF_PHASE = {
    "phase_relative": 1.0,
    "phase_sigmas": 60.0,
    "phase_between": 1.0,
    "phase_least_s": 1.0,
    "phase_benchmarks": 12,
}


@pytest.mark.parametrize(("field", "loose"), LOOSE.items())
def test_each_threshold_alone_can_excuse_a_change(field, loose):
    since = 6 if field == "window" else 11  # of which all in the window are as slow
    runs = nights(12, change=slower_download(2.0, since=since))
    of_ttfs = {"phase_benchmarks": 99}
    assert verdict_of(runs, Thresholds(**of_ttfs)).kind == "worse"
    assert verdict_of(runs, Thresholds(**of_ttfs, **{field: loose})).kind == "unchanged"


@pytest.mark.parametrize(("field", "loose"), LOOSE_OF_PHASE.items())
def test_each_threshold_of_a_phase_alone_can_excuse_its_change(field, loose):
    runs = nights(12, change=slower_download(0.3, since=11))
    assert verdict_of(runs).kind == "worse"
    assert verdict_of(runs, Thresholds(**{field: loose})).kind == "unchanged"


@pytest.mark.parametrize("field", [*LOOSE, *LOOSE_OF_PHASE, "least_runs"])
def test_a_negative_threshold_is_refused(field):
    with pytest.raises(ValidationError, match=rf"{field}\n.*greater than or equal to"):
        Thresholds(**{field: -1})
