"""`ups report`: the latest benchmark, one by its id, two beside each other, and the raw figures."""

import csv
import json

import pytest
from typer.testing import CliRunner

from deployments.cli import app
from ups.startup.benchmark import HISTORY
from ups.startup.history import History
from ups.startup.limits import Thresholds
from ups.startup.records import BenchmarkRecord, RunRecord
from ups.startup.verdict import judge


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
    history, earlier = History(tmp_path / HISTORY), []
    for number, ttfs_s in ((1, (2.0, 2.1, 2.2, 2.0, 2.1)), (2, (4.0, 4.2, 4.1, 4.1, 4.0))):
        one = record(number, ttfs_s)
        history.begin(one.model_copy(update={"runs": ()}))
        for run in one.runs:
            history.add_run(one.id, run)
        history.finish(one.id, [judge("cold", one.runs, earlier, Thresholds())])
        earlier.append(one.runs)

    def run(*arguments, code=0):
        done = CliRunner().invoke(app, ["report", "--folder", str(tmp_path), *arguments])
        assert done.exit_code == code, done.output
        return done.output

    return run


def test_the_latest_is_shown_with_its_verdict(report):
    output = report()
    assert "cold: worse: download 1.10 -> 3.10 s; TTFS 2.10 -> 4.10 s" in output
    assert "b2" in output


def test_json_has_the_comparison_and_what_is_asked_of_it(report):
    found = json.loads(report("--json"))
    assert found["record"]["id"] == "b2"
    assert found["verdicts"][0]["limit_s"] < 4.0
    assert [c["asks"] for c in found["criteria"]] == ["a first run builds the cache"]


def test_one_is_found_by_its_id(report):
    assert "No verdict yet: cold (0 of 5 runs before)" in report("b1")


def test_two_are_shown_beside_each_other_by_phase(report):
    changes = json.loads(report("b1", "b2", "--json"))
    rows = {row["phase"]: row["seconds"]["value"] for row in changes["rows"]}
    assert rows == {None: pytest.approx(2.0), "boot": 0.0, "download": pytest.approx(2.0)}
    assert "download" in report("b1", "b2")


def test_what_is_not_known_of_one_run_a_side_is_null_in_json(report, tmp_path):
    history = History(tmp_path / HISTORY)
    for id in "ef":
        history.begin(record(ord(id), ()).model_copy(update={"id": id}))
        history.add_run(id, record(9, (2.0,)).runs[0])
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
