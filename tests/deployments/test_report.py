"""`ups report`: the latest benchmark, one by its id, two beside each other, and the raw figures."""

import csv
import json
import re

import pytest
from typer.testing import CliRunner

from deployments.cli.app import app
from deployments.cli.report import show_of_run
from ups.startup.judge.history import History
from ups.startup.judge.limits import Thresholds
from ups.startup.judge.verdict import Verdict, judge_benchmark
from ups.startup.measure.records import BenchmarkRecord, RunRecord


def record(number, ttfs_s):
    runs = tuple(
        RunRecord(
            scenario="cold",
            repeat=i,
            flow_run_id=f"run-{number}-{i}",
            triggered_at=1000.0 * number + 10 * i,
            ttfs_s=seconds,
            phases={"boot": 1.0, "download": seconds - 1.0},
        )
        for i, seconds in enumerate(ttfs_s)
    )
    return BenchmarkRecord(
        id=f"b{number}",
        started_at=1000.0 * number,
        machine_id="m",
        machine={"cores": 2},
        versions={"torch": "2"},
        commit="abc",
        settings={"num_trajectories": 8},
        runs=runs,
    )


@pytest.fixture
def report(tmp_path):
    """`report(*arguments)`: the output of `ups report` on two benchmarks, the second slower."""
    history = History(tmp_path)
    for number, ttfs_s in ((1, (2.0, 2.1, 2.2, 2.0, 2.1)), (2, (4.0, 4.2, 4.1, 4.1, 4.0))):
        one = record(number, ttfs_s)
        history.save(one, judge_benchmark(one, history.benchmarks(), Thresholds()))

    def run(*arguments, code=0):
        done = CliRunner().invoke(app, ["report", "--folder", str(tmp_path), *arguments])
        assert done.exit_code == code, done.output
        return done.output

    return run


def test_the_latest_is_shown_with_its_verdict_and_one_before_by_its_id(report):
    output = report()
    assert "cold: worse: download 1.10 -> 3.10 s; TTFS 2.10 -> 4.10 s" in output
    assert "b2" in output
    assert "No verdict yet: cold (0 of 5 runs before)" in report("b1")


def test_json_has_the_comparison_and_what_is_asked_of_it(report):
    found = json.loads(report("--json"))
    assert found["record"]["id"] == "b2"
    assert found["verdicts"][0]["limit_s"] < 4.0
    assert [c["asks"] for c in found["criteria"]] == ["a first run builds the cache"]


def test_two_are_shown_beside_each_other_by_phase(report):
    changes = json.loads(report("b1", "b2", "--json"))
    rows = {row["phase"]: row["seconds"]["value"] for row in changes["rows"]}
    assert rows == {None: pytest.approx(2.0), "boot": 0.0, "download": pytest.approx(2.0)}
    assert "download" in report("b1", "b2")


def test_what_is_not_known_of_one_run_a_side_is_null_in_json(report, tmp_path):
    for id in "ef":
        History(tmp_path).save(record(9, (2.0,)).model_copy(update={"id": id}))
    output = report("e", "f", "--json")
    assert "NaN" not in output
    assert json.loads(output)["rows"][0]["seconds"]["low"] is None


def test_the_list_has_the_newest_first(report):
    output = report("--list")
    assert output.index("b2") < output.index("b1")
    assert [one["id"] for one in json.loads(report("--list", "--json"))] == ["b2", "b1"]


def test_every_phase_of_every_run_can_be_exported(report, tmp_path):
    path = tmp_path / "all.csv"
    report("--csv", str(path))
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert len(rows) == 2 * 5 * 2
    assert {row["phase"] for row in rows} == {"boot", "download"}


def test_what_is_not_there_is_said(report, tmp_path):
    assert "no benchmark in" in report("b9", code=1)
    done = CliRunner().invoke(app, ["report", "--folder", str(tmp_path / "none")])
    assert done.exit_code == 1
    assert "`ups benchmark` makes one" in done.output


def test_the_benchmark_that_a_flow_run_made_is_shown_and_no_other(report, tmp_path, capsys):
    for id, runs in ("mine", (2.0,)), ("none", ()):
        made = record(3, runs).model_copy(update={"id": id, "flow_run_id": f"run of {id}"})
        History(tmp_path).save(made)
    for run_id in ("run of mine", "run of none", "another"):
        show_of_run(tmp_path, run_id, as_json=False)
    assert [line for line in capsys.readouterr().out.splitlines() if "benchmark " in line] == [
        "benchmark  mine, 1970-01-01 00:50 UTC, commit abc"
    ]
    show_of_run(tmp_path / "nowhere", "run of mine", as_json=False)
    assert not (tmp_path / "nowhere").exists()


def shows(output, *cells):
    """Whether a line has these cells, in this order."""
    return re.search(".*".join(re.escape(cell) for cell in cells), output)


def test_a_terminal_shows_what_the_artifact_does(report, tmp_path):
    one = record(3, (2.0, 3.0))
    network = {"bounds": {"download": "[network]"}, "bounds_s": {"download": 0.5}}
    full = [
        run.model_copy(update={**network, "busy_cores": cores})
        for run, cores in zip(one.runs, (1.31, 0.1), strict=True)
    ]
    others = record(3, (4.0, 4.0)).runs
    without = [run.model_copy(update={"scenario": "no-warm_up"}) for run in others]
    seconds = {"before_s": 1.5, "after_s": 2.5, "limit_s": 2.0}
    verdict = Verdict(scenario="cold", kind="worse", num_before=9, num_now=2, **seconds)
    History(tmp_path).save(one.model_copy(update={"runs": (*full, *without)}), [verdict])
    output = report()
    assert output.startswith("Worse: cold +67 % (1.50 s → 2.50 s)\n")
    assert "Something else was running before 1 of 4 runs (up to 1.3 cores)" in output
    assert verdict.message in output
    assert shows(output, "cold", "2.50 s [2.00–3.00]", "worse beyond 2.00 s", "unaccounted")
    assert shows(output, "download", "1.50 s [1.00–2.00]", "0.500 s, taken 3.00×", "[network]")
    assert shows(output, "warm_up", "cold", "+1.50 s", "+60 %", "saves time")
    assert shows(output, "plan", "a first run builds the cache", "built", "0 of 2 runs", "✗")
    assert "critical path  unaccounted 2.00 s" in output
    assert "work on next   unaccounted: 2.00 s of the critical path" in output
    assert "machine    cores 2" in output


def test_a_terminal_shows_what_changed_and_why_it_may_mean_nothing(report, tmp_path):
    History(tmp_path).save(record(3, (7.0,)).model_copy(update={"machine_id": "m2"}))
    output = report("b1", "b3")
    assert "Not comparable: they ran on different machines" in output
    assert shows(output, "cold", "time to first step", "2.10 s [2.00–2.20]", "7.00 s", "+4.90 s")
    assert shows(output, "cold", "boot", "1.00 s", "1.00 s", "0 s")
