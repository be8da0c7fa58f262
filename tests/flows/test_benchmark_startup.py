"""What `benchmark-startup` does around a run that counts; the runs themselves are made up."""

import threading
from types import SimpleNamespace

import pytest
from prefect.utilities.callables import parameter_schema

from flows import benchmark_startup
from ups.errors import BenchmarkError, RegressionFound
from ups.startup.measure.bounds import Rates
from ups.startup.measure.records import RunRecord
from ups.startup.measure.scenarios import BY_NAME, SETS, choose, in_turn


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """`bench(found, modes, …)`: what preparing finds, and how runs start, one after the other.

    `slow` has the seconds of each run of some scenarios. Its `names` are
    those of the runs that were triggered.
    """

    def make(found=(), modes=(), ttfs_s=1.0, idle_s=None, slow=None):
        found, modes, names = list(found), list(modes), []

        def run_scenario(scenario, name, config, overrides):
            names.append(name)
            return SimpleNamespace(id="0b5c6f44-7a3e-4f7c-9a39-0f6f5f6f3c11")

        def read_record(scenario, repeat, run, *others):
            return RunRecord(
                scenario=scenario.name,
                repeat=repeat,
                flow_run_id=str(run.id),
                triggered_at=0.0,
                ttfs_s=slow[scenario.name].pop(0) if scenario.name in (slow or {}) else ttfs_s,
                idle_s=idle_s,
                phases={},
                start_mode=modes.pop(0) if modes else "warm",
            )

        monkeypatch.setattr(
            benchmark_startup, "prepare_scenario", lambda *_: found.pop(0) if found else True
        )
        monkeypatch.setattr(benchmark_startup, "LOOK_S", 0.0)
        monkeypatch.setattr(benchmark_startup, "run_scenario", run_scenario)
        monkeypatch.setattr(benchmark_startup, "read_record", read_record)
        rates = Rates(store=1.0, write=1.0, read=1.0)
        made = benchmark_startup._Bench("benchmark", 8, "kept", tmp_path, rates, threading.Event())
        made.names = names
        return made

    return make


@pytest.fixture
def benchmark(bench, monkeypatch, tmp_path):
    """`benchmark(scenarios, ttfs_s=…)`: the whole flow; the names of the runs that it triggered."""
    monkeypatch.setattr(benchmark_startup, "make_inputs", lambda _: None)
    rates = Rates(store=1.0, write=1.0, read=1.0)
    monkeypatch.setattr(benchmark_startup, "measure_bounds", lambda *_: rates)
    monkeypatch.setattr(benchmark_startup, "publish", lambda *_: None)

    def call(scenarios, repeats=4, **times):
        names, options = bench(**times).names, {"repeats": repeats, "folder": tmp_path}
        benchmark_startup.benchmark_startup.fn(scenarios, num_trajectories=8, **options)
        return names

    return call


def test_the_scenarios_alternate_in_a_balanced_order(benchmark):
    chosen = choose(["nightly"], has_gpu=False)
    expected = [(s.name, repeat) for repeat in (1, 2, 3, 4) for s in in_turn(chosen, repeat)]
    assert benchmark(["nightly"]) == [f"4 {name} {repeat}" for name, repeat in expected]


def test_the_form_of_a_run_knows_the_scenarios_that_there_are():
    form = parameter_schema(benchmark_startup.benchmark_startup.fn).model_dump()
    assert form["properties"]["scenarios"]["items"]["enum"] == [*SETS, *BY_NAME]


def test_a_regression_and_in_the_set_of_the_plan_what_it_asks_and_is_not_met_fail_the_flow(
    benchmark,
):
    assert len(benchmark(["warm"], repeats=5)) == 5
    with pytest.raises(RegressionFound, match=r"warm: worse: .* 1\.00 -> 40\.00 s"):
        benchmark(["warm"], ttfs_s=40.0)
    with pytest.raises(BenchmarkError, match=r"not met: .*target < 30"):
        benchmark(["plan"], ttfs_s=40.0)
    benchmark(["nightly"], ttfs_s=40.0)


def test_a_scenario_that_came_out_worse_is_measured_as_often_again_before_it_fails_the_flow(
    benchmark,
):
    benchmark(["cold", "warm"], repeats=5)
    slow = {"cold": [40.0, 40.0, 1.0, 1.0, 1.0, 1.0]}
    names = benchmark(["cold", "warm"], repeats=3, slow=slow)
    assert names[6:] == [f"4 cold {repeat}" for repeat in (4, 5, 6)]
    with pytest.raises(RegressionFound):  # by the median of both halves, not of the second alone
        benchmark(["cold", "warm"], repeats=3, slow={"cold": [*[40.0] * 4, 1.0, 1.0]})
    with pytest.raises(
        RegressionFound, match=r"^cold: worse: [^;]*; TTFS 1\.00 -> 40\.00 s [^;]*$"
    ):
        benchmark(["cold", "warm"], repeats=3, slow={"cold": [40.0] * 6})


def test_idle_seconds_that_alone_are_worse_fail_the_flow_with_a_line_of_their_own(benchmark):
    benchmark(["warm"], repeats=5, idle_s=2.0)
    with pytest.raises(
        RegressionFound,
        match=r"^warm: worse: no single phase; idle 2\.00 -> 8\.00 s \(limit [\d.]+ s, [^;]*\)$",
    ):
        benchmark(["warm"], idle_s=8.0)


def test_a_run_that_finds_what_it_needs_is_the_only_one(bench):
    made = bench()
    assert made.run(BY_NAME["warm"], 1).repeat == 1
    assert made.names == ["4 warm 1"]


def test_a_missing_cache_is_built_by_one_run_that_does_not_count(bench):
    made = bench(found=[False, True])
    assert made.run(BY_NAME["warm"], 1).repeat == 1
    assert made.names == ["4 warm, uncounted", "4 warm 1"]


def test_a_cache_that_is_missing_after_the_run_that_was_to_build_it_ends_the_benchmark(bench):
    made = bench(found=[False, False])
    with pytest.raises(BenchmarkError, match=r"warm: .*0b5c6f44.* was to build .*removing .*warm"):
        made.run(BY_NAME["warm"], 1)
    assert made.names == ["4 warm, uncounted"]


def test_a_run_that_came_out_cold_is_done_again_once_in_a_benchmark(bench):
    made = bench(modes=["cold", "warm", "cold"])
    assert made.run(BY_NAME["warm"], 1).start_mode == "warm"
    assert made.names == ["4 warm 1", "4 warm 1"]
    assert made.run(BY_NAME["warm"], 2).start_mode == "cold"
    assert made.names[2:] == ["4 warm 2"]


def test_a_scenario_that_asks_for_a_cold_start_is_not_done_again_for_it(bench):
    made = bench(modes=["cold"])
    assert made.run(BY_NAME["no-warm_start"], 1).start_mode == "cold"
    assert made.names == ["4 no-warm_start 1"]
