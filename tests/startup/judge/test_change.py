from tests.startup.conftest import with_idle
from ups.runs.breakdown import IDLE
from ups.startup.judge.change import diff


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
    cold, warm = changes.rows
    assert [(row.scenario, row.phase) for row in (cold, warm)] == [("cold", None), ("warm", None)]
    assert (cold.before.median, cold.after, warm.before, cold.seconds) == (4.75, None, None, None)


def test_benchmarks_of_other_machines_and_settings_say_so(benchmark):
    other = benchmark(machine_id="m2", settings={"num_trajectories": 2048, "page cache": "dropped"})
    assert diff(benchmark(), other).reasons == (
        "they ran on different machines",
        "num_trajectories was 256, then 2048",
        "page cache was None, then dropped",
    )


def test_idle_seconds_are_compared_beside_ttfs_where_they_are_known(benchmark):
    known, more = (
        with_idle(benchmark({"cold": (2.0,)})),
        with_idle(benchmark({"cold": (2.0,)}), 2.0),
    )
    ttfs, idle, *_ = diff(known, more).rows
    assert (ttfs.phase, ttfs.seconds.value, idle.phase, idle.seconds.value) == (None, 0, IDLE, 1.5)
    idle = diff(benchmark({"cold": (2.0,)}), known).rows[1]
    assert (idle.phase, idle.before, idle.after.median, idle.seconds) == (IDLE, None, 5.25, None)
