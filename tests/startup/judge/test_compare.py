import math

import pytest

from tests.startup.conftest import with_idle
from ups.startup.judge.compare import Spread, compare
from ups.startup.judge.next_phase import NextPhase
from ups.startup.judge.verdict import Verdict
from ups.startup.show import wording


@pytest.fixture
def scenarios(benchmark):
    return {scenario.name: scenario for scenario in compare(benchmark()).scenarios}


def phases(scenario):
    return {phase.phase: phase for phase in scenario.phases}


def test_ttfs_and_each_phase_are_summarised_by_the_median_and_the_ends(scenarios):
    assert [s.ttfs for s in scenarios.values()] == [
        Spread(median=9.75, smallest=8.75, largest=11.75, num=3),
        Spread(median=5.0, smallest=4.75, largest=5.25, num=3),
        Spread(median=6.5, smallest=6.25, largest=6.75, num=3),
    ]
    found = phases(scenarios["cold"])
    assert list(found) == ["boot", "download", "warm-up", "cache", "first step", "unaccounted"]
    assert found["download"].seconds == Spread(median=2.25, smallest=2.0, largest=2.5, num=3)
    assert found["warm-up"].seconds.median == 1.5
    assert found["unaccounted"].seconds.median == 0.25


def test_scenarios_come_in_the_order_of_their_bases_and_unknown_ones_last(benchmark):
    record = benchmark({"plan": (1.0,), "no-parallel_downloads": (1.0,), "legacy": (2.0,)})
    found = compare(record).scenarios
    assert [s.name for s in found] == ["legacy", "no-parallel_downloads", "plan"]


def test_legacy_takes_the_ratio_of_the_medians_as_long(scenarios):
    ratio = scenarios["cold"].to_baseline
    assert ratio.value == 9.75 / 5.0
    assert 8.75 / 5.25 <= ratio.low < ratio.value < ratio.high <= 11.75 / 4.75
    of_download = phases(scenarios["cold"])["download"].to_baseline
    assert of_download.value == 7.0 / 2.25
    assert 6.0 / 2.5 <= of_download.low < of_download.value < of_download.high <= 9.0 / 2.0


def test_there_is_no_ratio_of_legacy_to_itself_nor_to_what_it_lacks_nor_without_it(
    benchmark, scenarios
):
    assert scenarios["legacy"].to_baseline is None
    assert all(phase.to_baseline is None for phase in scenarios["legacy"].phases)
    assert phases(scenarios["cold"])["warm-up"].to_baseline is None
    (cold,) = compare(benchmark({"cold": (2.0,)})).scenarios
    assert cold.to_baseline is None


@pytest.mark.parametrize("downloads_s", [(2.0,), (2.0, 3.0), (9.0, 2.0, 3.0), (2.0, 9.0, 3.0, 4.0)])
def test_the_critical_seconds_add_up_to_the_median_ttfs(benchmark, downloads_s):
    (cold,) = compare(benchmark({"cold": downloads_s})).scenarios
    assert math.fsum(phase.critical_s for phase in cold.phases) == cold.ttfs.median
    assert phases(cold)["warm-up"].critical_s == 0


def test_the_path_is_that_of_the_run_nearest_the_median(scenarios):
    cold = scenarios["cold"]
    assert cold.middle == "cold/2"
    steps = {"boot": 1.0, "download": 2.25, "cache": 1.0, "unaccounted": 0.25, "first step": 0.5}
    assert [(step.phase, step.seconds) for step in cold.path] == [*steps.items()]
    assert cold.flow_run_ids == ("cold/0", "cold/1", "cold/2")


def test_a_phase_is_held_against_its_bound(scenarios):
    found = phases(scenarios["cold"])
    bounds = [(p.bound, p.bound_s, wording.bound(p)) for p in (found["download"], found["cache"])]
    assert bounds == [("network: 420 MB", 1.5, "1.50 s, taken 1.50×"), ("", None, "–")]


def test_the_phase_to_work_on_next_is_furthest_above_its_bound(scenarios):
    legacy, cold = scenarios["legacy"], scenarios["cold"]
    download = NextPhase(phase="download", seconds=7.0, bound_s=1.5, above_s=5.5)
    assert legacy.next == legacy.next_measured == download
    assert cold.next.phase == "boot"  # as long as cache; download is 0.75 s above its bound
    download = NextPhase(phase="download", seconds=2.25, bound_s=1.5, above_s=0.75)
    assert cold.next_measured == download


def test_a_share_is_what_ttfs_grows_by_without_the_optimisation_and_needs_its_base(benchmark):
    (share,) = compare(benchmark()).shares
    assert (share.scenario, share.base) == ("no-parallel_downloads", "cold")
    assert share.seconds.value == 1.5
    assert 6.25 - 5.25 <= share.seconds.low < 1.5 < share.seconds.high <= 6.75 - 4.75
    assert share.percent == pytest.approx(30)
    assert compare(benchmark({"no-parallel_downloads": (4.0,)})).shares == ()


@pytest.mark.parametrize(
    ("without_s", "effect"),
    [
        ((4.0, 3.5, 3.75), "saves time"),
        ((1.0, 1.1, 1.2), "costs time"),
        ((1.9, 2.3, 2.7), "within the noise"),
        ((9.0,), "one run only"),
    ],
)
def test_a_share_says_what_can_be_made_of_it(benchmark, without_s, effect):
    record = benchmark({"cold": (2.0, 2.5, 2.25), "no-parallel_downloads": without_s})
    assert [share.effect for share in compare(record).shares] == [effect]


def test_a_run_without_spans_is_unaccounted(benchmark):
    (run,) = benchmark({"cold": (2.0,)}).runs
    bare = run.model_copy(update={"spans": ()})
    (cold,) = compare(benchmark(runs=(bare,))).scenarios
    assert {p.phase: p.critical_s for p in cold.phases if p.critical_s} == {"unaccounted": 4.75}


def test_other_load_counts_the_runs_before_which_something_else_was_running(benchmark):
    record = benchmark({"cold": (2.0, 2.5, 2.25)})
    runs = [
        run.model_copy(update={"busy_cores": cores})
        for run, cores in zip(record.runs, (0.4, 1.25, 0.75), strict=True)
    ]
    found = compare(benchmark(runs=tuple(runs))).other_load
    assert (found.num_runs, found.of_runs, found.most_cores) == (2, 3, 1.25)
    assert compare(benchmark(runs=tuple(runs[:1]))).other_load is None
    assert compare(record).other_load is None  # nobody looked


def test_the_trend_has_a_point_per_benchmark_like_it_and_marks_what_was_worse(benchmark):
    worse = Verdict(scenario="cold", kind="worse", num_before=9, num_now=3)
    now = benchmark({"cold": (4.0, 4.5), "warm": (1.0,)}, id="b2", verdicts=(worse,))
    earlier = benchmark({"cold": (2.0,), "legacy": (9.0,)}, started_at=now.started_at - 5)
    others = [benchmark(machine_id="m2"), benchmark(settings={})]
    points = compare(now, [now, earlier, *others]).trend
    assert [(p.scenario, p.at - now.started_at, p.ttfs.median, p.worse) for p in points] == [
        ("cold", -5, 4.75, False),
        ("cold", 0, 7.0, True),
        ("warm", 0, 3.75, False),
    ]
    assert (points[1].ttfs.smallest, points[1].ttfs.largest, points[1].ttfs.num) == (6.75, 7.25, 2)
    assert compare(now).trend == ()


def test_the_trend_marks_the_figure_that_was_worse(benchmark):
    worse = Verdict(scenario="cold", figure="idle", kind="worse", num_before=9, num_now=3)
    now = with_idle(benchmark({"cold": (2.0, 2.5)}, verdicts=(worse,)))
    (point,) = compare(now, [now]).trend
    assert (point.idle_s, point.idle_worse, point.worse) == (5.5, True, False)


def test_what_a_changed_config_gains_by_streaming_has_a_share_of_its_own(benchmark):
    record = benchmark({"changed-config": (1.0,), "no-stream-changed-config": (1.5,)})
    first, second = record.runs
    first, second = (
        first.model_copy(update={"idle_s": 4.0}),
        second.model_copy(update={"idle_s": 7}),
    )
    (share,) = compare(benchmark(runs=(first, second))).shares
    assert (share.optimisation, share.base) == ("stream", "changed-config")
    assert (share.seconds.value, share.idle.value) == (0.5, 3.0)
