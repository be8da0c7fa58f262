"""Verdicts on the idle seconds until the end of the first epoch, beside those on TTFS."""

import re

import pytest

from tests.startup.judge.histories import DEFAULTS, NIGHT_S, longer, nights, verdict_of, with_waits
from ups.startup.judge.verdict import FIGURES, judge, judge_benchmark


def idle_nights(num, factor_of_last=1.0):
    """Benchmarks that wait 0.5 s for rows, the last one `factor_of_last` times as long."""
    return with_waits(nights(num, noise=0.01), 0.5, noise=0.01, factor_of_last=factor_of_last)


@pytest.mark.parametrize(("factor", "kind"), [(1.0, "unchanged"), (5.0, "worse")])
def test_idle_seconds_are_judged_though_the_first_step_comes_as_early_as_ever(
    benchmark, factor, kind
):
    benchmarks = [
        benchmark(id=f"b{night}", started_at=night * NIGHT_S, runs=tuple(runs))
        for night, runs in enumerate(idle_nights(8, factor))
    ]
    ttfs, idle = judge_benchmark(benchmarks[-1], benchmarks[:-1], DEFAULTS)
    assert (ttfs.figure, ttfs.kind, idle.figure, idle.kind) == ("TTFS", "unchanged", "idle", kind)
    assert (idle.before_s, idle.after_s) == pytest.approx((4.6, 4.1 + factor * 0.5), rel=0.03)
    if kind == "worse":
        assert idle.phase == "waits after the first step"
        assert (idle.phase_before_s, idle.phase_after_s) == pytest.approx((0.5, 2.5), rel=0.03)
        assert re.match(
            r"cold: worse: waits after the first step 0\.\d\d -> 2\.\d\d s; idle 4\.\d\d -> 6",
            idle.message,
        )


def test_the_wait_of_the_first_step_is_a_phase_and_not_counted_twice():
    *before, now = idle_nights(8)
    later = [
        longer(run, 3.0, **{"first rows": 3.0}).model_copy(
            update={"idle_s": run.idle_s + 3.0, "waited_s": run.waited_s + 3.0}
        )
        for run in now
    ]
    idle = judge("cold", later, before, DEFAULTS, "idle")
    assert (idle.kind, idle.phase, idle.phase_after_s) == ("worse", "first rows", 3.0)


def test_idle_seconds_have_a_limit_of_their_own_and_a_wider_one():
    made = with_waits(nights(8), 0.0)  # as long as the time to the first step
    ttfs, idle = (verdict_of(made, figure=figure) for figure in FIGURES)
    assert idle.before_s == ttfs.before_s
    margins_s = (verdict.limit_s - verdict.before_s for verdict in (idle, ttfs))
    assert next(margins_s) == pytest.approx(4 / 3 * next(margins_s))


def test_runs_that_know_no_idle_seconds_are_no_history_of_them():
    *knowing, now = idle_nights(3, 12.0)
    before = [*nights(5), *knowing]
    idle = judge("cold", now, before, DEFAULTS, "idle")
    assert (idle.kind, idle.num_before, idle.num_benchmarks) == ("worse", 10, 2)
    assert judge("cold", now, before, DEFAULTS).num_benchmarks == 7
    none = judge("cold", now, nights(5), DEFAULTS, "idle")
    assert (none.kind, none.num_before) == ("no verdict yet", 0)
    assert none.message.startswith("cold: no verdict yet: idle 10.")


def test_a_benchmark_of_runs_that_know_no_idle_seconds_has_no_verdict_on_them(benchmark):
    found = judge_benchmark(benchmark({"cold": (2.0,)}), [], DEFAULTS)
    assert [verdict.figure for verdict in found] == ["TTFS"]
