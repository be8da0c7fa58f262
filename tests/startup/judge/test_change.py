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
