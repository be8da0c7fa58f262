import math

import pytest

from ups.startup.compare import compare, diff
from ups.startup.critical_path import NextPhase


@pytest.fixture
def scenarios(benchmark, bases):
    return {scenario.name: scenario for scenario in compare(benchmark(), bases).scenarios}


def phases(scenario):
    return {phase.phase: phase for phase in scenario.phases}


def test_ttfs_is_summarised_by_its_median_and_its_ends(scenarios):
    assert [
        (s.ttfs.median, s.ttfs.smallest, s.ttfs.largest, s.ttfs.num) for s in scenarios.values()
    ] == [(9.75, 8.75, 11.75, 3), (5.0, 4.75, 5.25, 3), (6.5, 6.25, 6.75, 3)]


def test_scenarios_come_in_the_order_of_their_bases_and_unknown_ones_last(benchmark, bases):
    record = benchmark({"plan": (1.0,), "no-parallel_downloads": (1.0,), "legacy": (2.0,)})
    found = compare(record, bases).scenarios
    assert [s.name for s in found] == ["legacy", "no-parallel_downloads", "plan"]


def test_each_phase_has_its_median_and_spread(scenarios):
    found = phases(scenarios["cold"])
    assert list(found) == ["boot", "download", "warm-up", "cache", "first step", "unaccounted"]
    download = found["download"].seconds
    assert (download.median, download.smallest, download.largest) == (2.25, 2.0, 2.5)
    assert found["warm-up"].seconds.median == 1.5
    assert found["unaccounted"].seconds.median == 0.25


def test_legacy_takes_the_ratio_of_the_medians_as_long(scenarios):
    ratio = scenarios["cold"].to_baseline
    assert ratio.value == 9.75 / 5.0
    assert 8.75 / 5.25 <= ratio.low < ratio.value < ratio.high <= 11.75 / 4.75
    of_download = phases(scenarios["cold"])["download"].to_baseline
    assert of_download.value == 7.0 / 2.25
    assert 6.0 / 2.5 <= of_download.low < of_download.value < of_download.high <= 9.0 / 2.0


def test_legacy_has_no_ratio_to_itself_nor_a_phase_that_legacy_lacks(scenarios):
    assert scenarios["legacy"].to_baseline is None
    assert all(phase.to_baseline is None for phase in scenarios["legacy"].phases)
    assert phases(scenarios["cold"])["warm-up"].to_baseline is None


def test_without_legacy_there_are_no_ratios(benchmark, bases):
    (cold,) = compare(benchmark({"cold": (2.0,)}), bases).scenarios
    assert cold.to_baseline is None


@pytest.mark.parametrize("downloads_s", [(2.0,), (2.0, 3.0), (9.0, 2.0, 3.0), (2.0, 9.0, 3.0, 4.0)])
def test_the_critical_seconds_add_up_to_the_median_ttfs(benchmark, bases, downloads_s):
    (cold,) = compare(benchmark({"cold": downloads_s}), bases).scenarios
    assert math.fsum(phase.critical_s for phase in cold.phases) == cold.ttfs.median
    assert phases(cold)["warm-up"].critical_s == 0


def test_the_path_is_that_of_the_run_nearest_the_median(scenarios):
    cold = scenarios["cold"]
    assert cold.middle == "cold/2"
    assert [(step.phase, step.seconds) for step in cold.path] == [
        ("boot", 1.0),
        ("download", 2.25),
        ("cache", 1.0),
        ("unaccounted", 0.25),
        ("first step", 0.5),
    ]
    assert cold.flow_run_ids == ("cold/0", "cold/1", "cold/2")


def test_a_phase_is_held_against_its_bound(scenarios):
    download = phases(scenarios["cold"])["download"]
    assert (download.bound, download.bound_s, download.times_bound) == ("network: 420 MB", 1.5, 1.5)
    cache = phases(scenarios["cold"])["cache"]
    assert (cache.bound, cache.bound_s, cache.times_bound) == ("", None, None)


def test_the_phase_to_work_on_next_is_furthest_above_its_bound(scenarios):
    assert scenarios["legacy"].next == NextPhase(
        phase="download", seconds=7.0, bound_s=1.5, above_s=5.5
    )
    boot_and_cache_tie_at_one_second = scenarios["cold"].next  # download is 0.75 s above its bound
    assert boot_and_cache_tie_at_one_second.phase == "boot"
    assert scenarios["cold"].next_measured == NextPhase(
        phase="download", seconds=2.25, bound_s=1.5, above_s=0.75
    )
    assert scenarios["legacy"].next_measured == scenarios["legacy"].next


def test_a_share_is_what_ttfs_grows_by_without_the_optimisation(benchmark, bases):
    (share,) = compare(benchmark(), bases).shares
    assert (share.scenario, share.base) == ("no-parallel_downloads", "cold")
    assert share.seconds.value == 1.5
    assert 6.25 - 5.25 <= share.seconds.low < 1.5 < share.seconds.high <= 6.75 - 4.75
    assert share.percent == pytest.approx(30)
    assert share.effect == "saves time"


@pytest.mark.parametrize(
    ("without_s", "effect"),
    [
        ((1.0, 1.1, 1.2), "costs time"),
        ((1.9, 2.3, 2.7), "within the noise"),
        ((9.0,), "one run only"),
    ],
)
def test_a_share_says_what_can_be_made_of_it(benchmark, bases, without_s, effect):
    record = benchmark({"cold": (2.0, 2.5, 2.25), "no-parallel_downloads": without_s})
    (share,) = compare(record, bases).shares
    assert share.effect == effect


def test_a_share_needs_the_scenario_that_it_is_compared_with(benchmark, bases):
    assert compare(benchmark({"no-parallel_downloads": (4.0,)}), bases).shares == ()


def test_a_run_without_spans_is_unaccounted(benchmark, bases):
    record = benchmark({"cold": (2.0,)})
    bare = record.runs[0].model_copy(update={"spans": ()})
    (cold,) = compare(record.model_copy(update={"runs": (bare,)}), bases).scenarios
    assert {p.phase: p.critical_s for p in cold.phases if p.critical_s} == {"unaccounted": 4.75}


def test_other_load_counts_the_runs_before_which_something_else_was_running(benchmark, bases):
    record = benchmark({"cold": (2.0, 2.5, 2.25)})
    runs = [
        run.model_copy(update={"busy_cores": cores})
        for run, cores in zip(record.runs, (0.4, 1.25, 0.75), strict=True)
    ]
    found = compare(record.model_copy(update={"runs": tuple(runs)}), bases).other_load
    assert (found.num_runs, found.of_runs, found.most_cores) == (2, 3, 1.25)
    quiet = record.model_copy(update={"runs": tuple(runs[:1])})
    assert compare(quiet, bases).other_load is None
    assert compare(record, bases).other_load is None  # nobody looked


def test_a_difference_is_after_less_before(benchmark):
    after = benchmark({"cold": (4.0, 4.5, 4.25)}, id="b2")
    changes = diff(benchmark({"cold": (2.0, 2.5, 2.25)}), after)
    rows = {row.phase: row for row in changes.rows}
    assert list(rows)[:3] == [None, "boot", "download"]
    for phase in (None, "download"):
        assert rows[phase].seconds.value == 2.0
        assert 1.5 <= rows[phase].seconds.low < 2.0 < rows[phase].seconds.high <= 2.5
    assert (rows[None].before.median, rows[None].after.median) == (5.0, 7.0)
    assert rows["boot"].seconds.value == 0
    assert changes.reasons == ()


def test_of_a_scenario_that_only_one_benchmark_has_there_is_ttfs_alone(benchmark):
    changes = diff(benchmark({"cold": (2.0,)}), benchmark({"warm": (1.0,)}))
    rows = [(row.scenario, row.phase, row.before, row.after) for row in changes.rows]
    assert [row[:2] for row in rows] == [("cold", None), ("warm", None)]
    assert rows[0][2].median == 4.75
    assert rows[0][3] is None
    assert rows[1][2] is None
    assert changes.rows[0].seconds is None


def test_benchmarks_of_other_machines_and_settings_say_so(benchmark):
    other = benchmark(machine_id="m2", settings={"num_trajectories": 2048, "page cache": "dropped"})
    assert diff(benchmark(), other).reasons == (
        "they ran on different machines",
        "num_trajectories was 256, then 2048",
        "page cache was None, then dropped",
    )
