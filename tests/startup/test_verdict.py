"""Verdicts on made-up histories: what must be reported is, and what is only noise is not."""

import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ups.startup.history import History
from ups.startup.records import BenchmarkRecord, RunRecord
from ups.startup.verdict import Thresholds, Verdict, judge

DEFAULTS = Thresholds()
REPEATS = 3
PHASES = {"boot": 1.0, "download": 1.2, "first step": 1.8, "unaccounted": 0.1}  # of 4.1 s
NIGHT_S = 86_400.0
seeds = st.integers(0, 2**32 - 1)


def run_of(night=0, repeat=0, *, scenario="cold", extra=None, factor=1.0):
    """A run whose TTFS is the sum of its phases."""
    extra = extra or {}
    phases = {
        name: factor * (PHASES.get(name, 0.0) + extra.get(name, 0.0))
        for name in {**PHASES, **extra}
    }
    return RunRecord(
        scenario=scenario,
        repeat=repeat,
        flow_run_id=f"{night}-{repeat}",
        triggered_at=night * NIGHT_S + 60 * repeat,
        ttfs_s=sum(phases.values()),
        phases=phases,
    )


def nights(num, *, seed=0, noise=0.02, repeats=REPEATS, first=0, change=lambda night: None):
    """`num` benchmarks whose runs vary by `noise` from night to night, and as much within one."""
    rng = np.random.default_rng(seed)
    runs = []
    for night in range(first, first + num):
        of_night = 1 + noise * rng.standard_normal()
        for repeat in range(repeats):
            factor = max(of_night + noise * rng.standard_normal(), 0.05)
            runs.append(run_of(night, repeat, extra=change(night), factor=factor))
    return runs


def verdict_of(runs, thresholds=DEFAULTS, repeats=REPEATS):
    """Of the last benchmark, against those before."""
    return judge("cold", runs[-repeats:], runs[:-repeats], thresholds)


def slower_download(seconds, since):
    return lambda night: {"download": seconds if night >= since else 0.0}


# No change


def test_the_same_as_ever_is_unchanged():
    verdict = verdict_of(nights(8))
    assert verdict.kind == "unchanged"
    assert verdict.phase is None
    assert verdict.moved_phases == ()
    assert (verdict.num_before, verdict.num_now) == (21, 3)


def test_a_second_benchmark_like_the_first_is_unchanged_where_so_few_runs_are_allowed():
    few = Thresholds(least_runs=3)
    assert verdict_of(nights(2), few).kind == "unchanged"


def test_a_change_that_nobody_cares_about_is_unchanged_however_clear():
    def warm(seconds):
        return [run_of(night, extra={"boot": seconds - 4.1}) for night in range(9)]

    assert judge("cold", warm(0.44)[:3], warm(0.20), DEFAULTS).kind == "unchanged"
    assert judge("cold", warm(0.46)[:3], warm(0.20), DEFAULTS).kind == "worse"


# Steps


def test_a_step_beyond_the_threshold_is_worse_and_names_the_phase():
    verdict = verdict_of(nights(8, change=slower_download(3.15, since=7)))
    assert verdict.kind == "worse"
    assert verdict.phase == "download"
    assert verdict.before_s == pytest.approx(4.1, rel=0.05)
    assert verdict.after_s == pytest.approx(7.25, rel=0.05)
    assert verdict.phase_before_s == pytest.approx(1.2, rel=0.05)
    assert verdict.phase_after_s == pytest.approx(4.35, rel=0.05)
    assert verdict.before_s < verdict.limit_s < verdict.after_s


def test_a_step_down_is_improved_and_names_the_phase():
    verdict = verdict_of(nights(8, change=slower_download(-1.0, since=7)))
    assert verdict.kind == "improved"
    assert verdict.phase == "download"
    assert verdict.after_s < verdict.limit_s < verdict.before_s


def test_a_step_below_the_threshold_is_unchanged():
    assert verdict_of(nights(8, change=slower_download(0.3, since=7))).kind == "unchanged"


def test_a_step_up_is_still_reported_the_nights_after():
    for night in range(7, 14):
        runs = nights(night + 1, change=slower_download(3.0, since=7))
        assert verdict_of(runs).kind == "worse", night


def test_a_slowdown_that_stays_is_the_new_normal_once_the_window_has_passed():
    runs = nights(30, change=slower_download(3.0, since=7))
    assert verdict_of(runs).kind == "unchanged"


def test_a_fall_back_soon_after_an_improvement_is_worse():
    def change(night):
        return {"download": 0.0 if 12 <= night < 15 else 3.0}

    assert verdict_of(nights(13, change=change)).kind == "improved"
    verdict = verdict_of(nights(16, change=change))
    assert (verdict.kind, verdict.phase, verdict.reference) == ("worse", "download", "newest")
    assert verdict.num_before == DEFAULTS.least_runs
    assert "median of the 5 newest runs before" in verdict.message


def test_worse_than_of_late_is_worse_though_better_than_long_ago():
    def change(night):
        return {"download": 1.4 if night == 15 else 0.0 if night >= 12 else 3.0}

    verdict = verdict_of(nights(16, noise=0.01, change=change))
    assert (verdict.kind, verdict.reference) == ("worse", "newest")


def test_noise_as_large_as_the_change_hides_it():
    wide = nights(12, noise=0.25, seed=3, change=slower_download(1.2, since=11))
    assert verdict_of(wide).kind == "unchanged"
    narrow = nights(12, noise=0.01, seed=3, change=slower_download(1.2, since=11))
    assert verdict_of(narrow).kind == "worse"


def test_three_times_as_long_is_worse_in_any_noise():
    wild = nights(3, noise=0.5, seed=5, change=slower_download(9.5, since=2))
    verdict = verdict_of(wild)
    assert verdict.after_s > 3 * verdict.before_s
    assert (verdict.kind, verdict.phase) == ("worse", "download")
    assert verdict_of(wild, DEFAULTS.model_copy(update={"certain": 9.0})).kind == "unchanged"


# Drift


@pytest.mark.parametrize("seed", range(5))
def test_a_drift_that_adds_up_to_more_than_the_threshold_over_the_window_is_worse(seed):
    """25 % over 17 nights: 0.06 s a night, a tenth of what one night may be slower."""
    num = DEFAULTS.window // REPEATS + 1
    runs = nights(
        num + 1, seed=seed, noise=0.01, change=lambda night: {"download": 0.25 * 4.1 * night / num}
    )
    verdict = verdict_of(runs)
    assert (verdict.kind, verdict.phase) == ("worse", "download")
    assert verdict.reference == "oldest"
    assert "the 5 oldest runs of the window" in verdict.message


def test_a_drift_is_not_lost_in_a_history_longer_than_the_window():
    for num in 40, 41, 42:
        runs = nights(num, noise=0.01, change=lambda night: {"boot": 0.08 * night})
        assert verdict_of(runs).kind == "worse", num


def test_a_drift_to_faster_is_improved():
    runs = nights(18, noise=0.01, change=lambda night: {"download": -0.065 * night})
    assert verdict_of(runs).kind == "improved"


# Noise


@pytest.mark.parametrize(
    ("noise", "num_nights", "repeats", "most"),
    [
        (0.05, 4, 3, 0.005),
        (0.2, 1, 5, 0.02),
        (0.2, 2, 3, 0.01),
        (0.2, 17, 3, 0.005),
    ],
)
def test_false_alarms_are_rare(noise, num_nights, repeats, most):
    """A bound on the share of benchmarks called worse though nothing changed but the night."""
    num = 250
    calm = Thresholds(least_s=0.0)
    false_alarms = 0
    for seed in range(num):
        runs = nights(num_nights + 1, seed=seed, noise=noise, repeats=repeats)
        false_alarms += verdict_of(runs, calm, repeats).kind == "worse"
    assert false_alarms <= most * num


@settings(max_examples=40, deadline=None)
@given(seeds, st.sampled_from([1, 3, 5]), st.integers(6, 20))
def test_a_little_noise_is_unchanged(seed, repeats, num):
    runs = nights(num, seed=seed, noise=0.015, repeats=repeats)
    assert verdict_of(runs, repeats=repeats).kind in ("unchanged", "no verdict yet")


@settings(max_examples=30, deadline=None)
@given(seeds, st.sampled_from([1, 3, 5]))
def test_twice_the_time_is_worse_in_any_noise_of_five_percent(seed, repeats):
    runs = nights(24, seed=seed, noise=0.05, repeats=repeats, change=slower_download(4.1, since=23))
    verdict = verdict_of(runs, repeats=repeats)
    assert (verdict.kind, verdict.phase) == ("worse", "download")


# Outliers


@pytest.mark.parametrize("factor", [0.05, 30.0])
@pytest.mark.parametrize("step_s", [0.0, 3.0])
@pytest.mark.parametrize("num", [4, 12])
def test_one_wild_run_changes_no_verdict(factor, step_s, num):
    runs = nights(num, change=slower_download(step_s, since=num - 1))
    expected = verdict_of(runs)
    assert expected.kind == ("worse" if step_s else "unchanged")
    for index in range(len(runs)):
        wild = runs[index].model_copy(update={"ttfs_s": factor * runs[index].ttfs_s})
        assert verdict_of([*runs[:index], wild, *runs[index + 1 :]]).kind == expected.kind, index


# Too little to judge by


def test_an_empty_history_is_no_verdict_yet():
    verdict = judge("cold", nights(1), [], DEFAULTS)
    assert verdict.kind == "no verdict yet"
    assert (verdict.before_s, verdict.limit_s, verdict.num_before) == (None, None, 0)
    assert str(verdict) == (
        f"cold: no verdict yet: TTFS {verdict.after_s:.2f} s (0 runs before, fewer than least_runs)"
    )


def test_too_little_history_is_no_verdict_yet_even_if_it_is_far_slower():
    runs = nights(5, repeats=1, change=slower_download(50.0, since=4))
    verdict = verdict_of(runs, repeats=1)
    assert (verdict.kind, verdict.num_before) == ("no verdict yet", 4)
    assert verdict_of(runs, Thresholds(least_runs=4), repeats=1).kind == "worse"


def test_without_a_new_run_there_is_no_verdict():
    verdict = judge("cold", [], nights(9), DEFAULTS)
    assert verdict.kind == "no verdict yet"
    assert verdict.message == "cold: no verdict yet: no run to judge"


def test_runs_of_other_scenarios_count_for_nothing():
    others = [run_of(night, scenario="legacy", factor=9.0) for night in range(20)]
    verdict = judge("cold", [*others, *nights(1, first=9)], [*nights(9), *others], DEFAULTS)
    assert (verdict.kind, verdict.num_before, verdict.num_now) == ("unchanged", 27, 3)


OTHER = [{"machine_id": "m2"}, {"settings": {"num_trajectories": 2048}}]


@pytest.mark.parametrize("other", OTHER)
def test_another_machine_or_other_settings_are_no_history(other, tmp_path):
    history = History(tmp_path / "history.sqlite")

    def benchmark(night, **fields):
        same = {"machine_id": "m1", "settings": {"num_trajectories": 64}}
        rest = {"machine": {}, "versions": {}, "commit": "c"}
        started_at = night * NIGHT_S - 5
        return BenchmarkRecord(id=f"b{night}", started_at=started_at, **{**same, **fields}, **rest)

    for night in range(8):
        record = benchmark(night, **(other if night < 7 else {}))
        history.begin(record)
        for run in nights(1, first=night, change=slower_download(9.0, since=7)):
            history.add_run(record.id, run)

    stranger, at_home = benchmark(8), benchmark(8, **other)
    now = nights(1, first=8, change=slower_download(9.0, since=7))
    before = history.runs_before(stranger, "cold", DEFAULTS.window)
    assert judge("cold", now, before, DEFAULTS).kind == "no verdict yet"
    before = history.runs_before(at_home, "cold", DEFAULTS.window)
    assert judge("cold", now, before, DEFAULTS).kind == "worse"


# What holds of every verdict


def random_history(seed):
    rng = random.Random(seed)
    step_s = rng.choice([0.0, 0.5, 3.0, -1.0])
    num, repeats = rng.randint(3, 20), rng.choice([1, 3, 5])
    since, noise = rng.randint(0, num), rng.choice([0.0, 0.02, 0.2])
    change = slower_download(step_s, since)
    return nights(num, seed=seed, noise=noise, repeats=repeats, change=change), repeats


def scaled(run, factor):
    phases = {name: factor * seconds for name, seconds in run.phases.items()}
    return run.model_copy(update={"ttfs_s": factor * run.ttfs_s, "phases": phases})


def slower(run, seconds):
    phases = {**run.phases, "boot": run.phases["boot"] + seconds}
    return run.model_copy(update={"ttfs_s": run.ttfs_s + seconds, "phases": phases})


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(-6, 10))
def test_the_unit_of_time_makes_no_difference(seed, exponent):
    runs, repeats = random_history(seed)
    factor = 2.0**exponent
    other_unit = DEFAULTS.model_copy(update={"least_s": factor * DEFAULTS.least_s})
    verdict = verdict_of(runs, repeats=repeats)
    scaled_verdict = verdict_of([scaled(r, factor) for r in runs], other_unit, repeats)
    assert (scaled_verdict.kind, scaled_verdict.phase) == (verdict.kind, verdict.phase)
    if verdict.limit_s is not None:
        assert scaled_verdict.limit_s == pytest.approx(factor * verdict.limit_s, rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(seeds, st.randoms(use_true_random=False))
def test_the_order_in_which_runs_are_given_makes_no_difference(seed, rng):
    runs, repeats = random_history(seed)
    now, before = runs[-repeats:], runs[:-repeats]
    shuffled_now, shuffled = rng.sample(now, len(now)), rng.sample(before, len(before))
    expected = judge("cold", now, before, DEFAULTS)
    assert judge("cold", shuffled_now, shuffled, DEFAULTS) == expected


@settings(max_examples=60, deadline=None)
@given(seeds, st.floats(0, 20))
def test_slower_runs_never_get_a_better_verdict(seed, seconds):
    runs, repeats = random_history(seed)
    order = ["improved", "unchanged", "worse"]
    kinds = [
        judge("cold", now, runs[:-repeats], DEFAULTS).kind
        for now in (runs[-repeats:], [slower(run, seconds) for run in runs[-repeats:]])
    ]
    if "no verdict yet" in kinds:
        assert kinds[0] == kinds[1]
    else:
        assert order.index(kinds[1]) >= order.index(kinds[0])


@settings(max_examples=40, deadline=None)
@given(seeds)
def test_the_figures_of_a_verdict_bear_it_out(seed):
    runs, repeats = random_history(seed)
    verdict = verdict_of(runs, repeats=repeats)
    if verdict.kind == "worse":
        assert verdict.before_s < verdict.limit_s < verdict.after_s
    elif verdict.kind == "improved":
        assert verdict.before_s > verdict.limit_s > verdict.after_s
    elif verdict.kind == "unchanged":
        assert abs(verdict.after_s - verdict.before_s) <= verdict.limit_s - verdict.before_s + 1e-9
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict
    assert json.dumps(verdict.message)
    assert verdict.message.startswith(f"cold: {verdict.kind}: ")


# Phases


def test_the_phase_that_moved_most_is_named_not_the_longest_nor_one_that_got_faster():
    runs = nights(
        8,
        change=lambda n: {"boot": 2.0, "download": 1.0, "load": -0.9} if n == 7 else {"load": 1.0},
    )
    assert verdict_of(runs).phase == "boot"


def test_a_phase_that_was_not_there_before_took_no_time():
    verdict = verdict_of(nights(8, noise=0.0, change=lambda n: {"cache": 2.0} if n == 7 else {}))
    assert (verdict.phase, verdict.phase_before_s, verdict.phase_after_s) == ("cache", 0.0, 2.0)


def test_phases_that_no_longer_overlap_are_worse_without_a_phase_to_blame():
    runs = nights(8, noise=0.0)
    apart = [run.model_copy(update={"ttfs_s": run.ttfs_s + 2.0}) for run in runs[-REPEATS:]]
    verdict = judge("cold", apart, runs[:-REPEATS], DEFAULTS)
    assert (verdict.kind, verdict.phase, verdict.phase_after_s) == ("worse", None, None)
    assert verdict.message.startswith("cold: worse: no single phase; TTFS 4.10 -> 6.10 s")


def test_a_phase_that_another_makes_up_for_is_noted_and_no_failure():
    runs = nights(
        8, noise=0.0, change=lambda n: {"download": 0.8, "first step": -0.8} if n == 7 else {}
    )
    verdict = verdict_of(runs)
    assert verdict.kind == "unchanged"
    assert [(p.phase, p.after_s > p.limit_s) for p in verdict.moved_phases] == [
        ("download", True),
        ("first step", False),
    ]
    assert verdict.message.endswith("; yet download 1.20 -> 2.00 s, first step 1.80 -> 1.00 s")


def test_a_message_names_scenario_phase_before_after_limit_and_runs():
    before = [run_of(night) for night in range(20)]
    now = [run_of(20, repeat, extra={"download": 3.15}) for repeat in range(3)]
    verdict = judge("cold", now, before, DEFAULTS)
    assert str(verdict) == verdict.message
    assert verdict.message == (
        "cold: worse: download 1.20 -> 4.35 s; TTFS 4.10 -> 7.25 s "
        "(limit 4.71 s, median of 20 runs before)"
    )


# Thresholds


@pytest.mark.parametrize(
    ("field", "loose"), [("relative", 1.0), ("sigmas", 60.0), ("least_s", 4.0)]
)
def test_each_threshold_alone_can_excuse_a_change(field, loose):
    runs = nights(8, change=slower_download(2.0, since=7))
    assert verdict_of(runs).kind == "worse"
    assert verdict_of(runs, DEFAULTS.model_copy(update={field: loose})).kind == "unchanged"


def test_the_window_is_how_far_is_looked_back():
    runs = nights(12, change=slower_download(3.0, since=6))
    assert verdict_of(runs).kind == "worse"
    assert verdict_of(runs, Thresholds(window=12)).kind == "unchanged"


def test_a_window_that_could_never_give_a_verdict_is_refused():
    with pytest.raises(ValidationError, match="raise window or lower least_runs"):
        Thresholds(window=4)


@pytest.mark.parametrize("field", ["window", "least_runs", "relative", "sigmas", "least_s"])
def test_a_negative_threshold_is_refused(field):
    with pytest.raises(ValidationError, match=rf"{field}\n.*greater than or equal to"):
        Thresholds(**{field: -1})
