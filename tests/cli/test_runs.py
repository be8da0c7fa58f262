"""`ups runs` on folders that `ups train` left."""

import json
import re

import pytest
import yaml
from typer.testing import CliRunner

from ups.cli.app import app
from ups.runs.breakdown import Breakdown, Phase


def ups(*arguments):
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "160"})
    return result.exit_code, result.output


@pytest.fixture
def trained(tiny_config, tmp_path):
    """The directory of two runs, `first` and `second`, of one epoch and of two."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_config().model_dump(mode="json")))
    runs_dir = tmp_path / "runs"
    for epochs, run_id in enumerate(("first", "second"), 1):
        setting = f"stages.operator.epochs={epochs}"
        code, output = ups("train", str(path), "--run-id", run_id, "--set", setting)
        assert code == 0, output
        folder = next(runs_dir.glob(f"*-{run_id}"))
        folder.rename(runs_dir / f"20260101-12000{epochs}-smoke-{run_id}")
    return str(runs_dir)


def test_runs_are_listed_shown_and_compared(trained):
    code, output = ups("runs", "list", "--dir", trained)
    assert code == 0, output
    assert output.index("second") < output.index("first")
    assert output.count("completed") == 2
    assert output.index("smoke epochs=2") < output.index("smoke epochs=1")

    code, output = ups("runs", "list", "--dir", trained, "--json", "--limit", "1")
    runs = json.loads(output)
    assert [run["id"] for run in runs] == ["second"]
    assert runs[0]["num_epochs"] == 2
    assert (runs[0]["name"], runs[0]["changed"]) == ("smoke", {"stages.operator.epochs": 2})
    _, output = ups("runs", "list", "--dir", trained, "--limit", "1")
    assert "--limit 2 shows" in output
    assert "first" not in output

    code, output = ups("runs", "show", "fir", "--dir", trained)
    assert code == 0, output
    for expected in ("completed", "commit", "test nRMSE", "checkpoints", "run.log", "processor",
                     "GPU", "s to the first step", "take one optimizer step"):  # fmt: skip
        assert expected in output, output
    _, output = ups("runs", "show", "second", "--dir", trained, "--json")
    second = json.loads(output)
    assert second["summary"]["nrmse_rollout"] == second["scores"]["rollout"]["nRMSE"]
    assert second["run"]["state"] == "completed"
    assert [row["epoch"] for row in second["epochs"]] == [1, 2]
    assert second["metrics"]["test/nrmse_rollout"] == second["summary"]["nrmse_rollout"]

    code, output = ups("runs", "compare", "fir", "sec", "--dir", trained)
    assert code == 0, output
    assert "stages.operator.epochs" in output
    assert "training.seed" not in output
    assert re.search(r"cache +\d.*first step +\d", output, re.DOTALL), output
    _, output = ups("runs", "compare", "first", "second", "--dir", trained, "--json")
    found = json.loads(output)
    assert found["config"] == {"stages.operator.epochs": {"before": 1, "after": 2}}
    nrmse = found["nrmse"]
    assert nrmse["difference"] == pytest.approx(nrmse["after"] - nrmse["before"])


def write_run(runs_dir, name, ttfs_s, note="", failed=None):
    folder = runs_dir / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("name: smoke\n")
    Breakdown(
        run=name, config="smoke", config_hash=None, start_mode="warm", triggered_at=0,
        ttfs_s=ttfs_s, until_s=ttfs_s, unaccounted_s=0, cost_usd=0, cache_reused=False,
        failed=failed, spans=(), metrics={}, gpu_note=note, nrmse_rollout=0.25,
        phases=(Phase(phase="queue", seconds=ttfs_s, share=1.0, bound="the [worker]"),),
    ).save(folder)  # fmt: skip


def test_a_run_that_failed_before_its_first_step_is_shown_and_so_are_scores_alone(tmp_path):
    write_run(tmp_path, "20260101-120000-smoke-aa", 2.0, failed="DataError: no")
    folder = tmp_path / "20260101-120000-smoke-aa"
    nothing = dict.fromkeys(("ttfs_s", "cache_reused", "nrmse_rollout"))
    Breakdown.load(folder).model_copy(update=nothing).save(folder)
    code, output = ups("runs", "show", "aa", "--dir", str(tmp_path))
    assert (code, "failed: DataError: no" in output, "nRMSE" in output) == (0, True, False), output
    scores = {"rollout": {"nRMSE": 0.5}, "persistence_rollout": {"nRMSE": 2.0}}
    (folder / "scores.json").write_text(json.dumps(scores))
    code, output = ups("runs", "show", "aa", "--dir", str(tmp_path))
    assert "0.5000 over the full rollout; persistence 2.0000, 4.0 times as much" in output
    scores["tasks"] = {name: {"rollout": {"nRMSE": n}} for name, n in (("a", 0.4), ("b", 0.6))}
    (folder / "scores.json").write_text(json.dumps(scores))
    code, output = ups("runs", "show", "aa", "--dir", str(tmp_path))
    assert "0.5000 over the full rollout, the mean over the problems; pers" in output
    assert re.search(r"  a +0\.4000\n  b +0\.6000\n", output)


@pytest.mark.parametrize("word", ["Infinity", "NaN", "1e999"])
def test_a_score_that_is_not_finite_is_no_success_and_null_in_json(tmp_path, word):
    for name in ("20260101-120000-smoke-aa", "20260101-120001-smoke-bb"):
        write_run(tmp_path, name, 2.0)
    folder = tmp_path / "20260101-120000-smoke-aa"
    scores = {"rollout": {"nRMSE": 1e9}, "tasks": {"a": {"rollout": {"nRMSE": 1e9}}}}
    text = Breakdown.load(folder).model_copy(update={"nrmse_rollout": 1e9}).model_dump_json()
    metrics = {"test/nrmse_rollout": 1e9}
    for file, content in (
        ("scores.json", json.dumps(scores)),
        ("breakdown.json", text),
        ("metrics.jsonl", json.dumps({"epoch": 1, "val": 1e9}) + "\n" + json.dumps(metrics)),
    ):
        assert "1000000000.0" in content
        (folder / file).write_text(content.replace("1000000000.0", word))

    def strictly(*arguments):
        code, output = ups("runs", *arguments, "--dir", str(tmp_path), "--json")
        assert code == 0, output
        return json.loads(output, parse_constant=lambda name: pytest.fail(name))

    listed = {run["id"]: (run["state"], run["nrmse_rollout"]) for run in strictly("list")}
    assert listed == {"aa": ("failed", None), "bb": ("completed", 0.25)}
    shown = strictly("show", "aa")
    assert shown["summary"]["state"] == "failed"
    assert shown["scores"]["tasks"]["a"]["rollout"]["nRMSE"] is None
    assert shown["breakdown"]["nrmse_rollout"] is shown["metrics"]["test/nrmse_rollout"] is None
    assert shown["epochs"] == [{"epoch": 1, "val": None}]
    change = {"before": None, "after": 0.25, "difference": None}
    assert strictly("compare", "aa", "bb")["nrmse"] == change
    _, output = ups("runs", "show", "aa", "--dir", str(tmp_path))
    assert re.search(r"state +failed: its test score is not finite\n", output)
    assert re.search(r"test nRMSE +not finite over the full rollout\n", output)
    (folder / "scores.json").unlink()  # then by the breakdown
    assert strictly("show", "aa")["summary"]["state"] == "failed"


def test_the_startup_is_shown_and_compared_by_phase_where_there_is_a_breakdown(tmp_path):
    write_run(tmp_path, "20260101-120000-smoke-aa", 2.0, note="no GPU here (why)")
    write_run(tmp_path, "20260101-120001-smoke-bb", 1.5, failed="ValueError: no")
    _, output = ups("runs", "show", "aa", "--dir", str(tmp_path))
    assert "2.00 s to the first step" in output
    assert "the [worker]" in output
    assert "no GPU here (why)" in output
    _, output = ups("runs", "show", "bb", "--dir", str(tmp_path))
    assert "failed: ValueError: no" in output
    _, output = ups("runs", "compare", "aa", "bb", "--dir", str(tmp_path))
    assert "the configs are the same" in output
    assert output.count("-0.50 s") == 2  # the whole, and its one phase
    assert "0.2500 → 0.2500 (+0.0000)" in output
    for name in ("cc", "dd"):
        (tmp_path / f"20260101-120002-smoke-{name}").mkdir()
    code, output = ups("runs", "compare", "cc", "dd", "--dir", str(tmp_path))
    assert (code, "neither run left a breakdown of its startup" in output) == (0, True)


def test_runs_of_a_schedule_are_listed_by_the_end_of_their_ids(tmp_path):
    ids = ["0199d3a17c407a529f0e6f2f5b7e9a10", "0199d3a17c407c3fb21d52d0e97f4c11"]
    for run_id in ids:
        write_run(tmp_path, f"20260101-120000-smoke-{run_id}", 2.0)
    _, output = ups("runs", "list", "--dir", str(tmp_path))
    assert "5b7e9a10" in output
    assert "e97f4c11" in output
    assert "0199" not in output
    _, output = ups("runs", "list", "--dir", str(tmp_path), "--json")
    assert sorted(run["id"] for run in json.loads(output)) == ids
    _, output = ups("runs", "show", "5b7e9a10", "--dir", str(tmp_path))
    assert ids[0] in output
    (tmp_path / f"20260101-120000-smoke-{ids[0]}" / ".lock").touch()
    _, output = ups("runs", "show", "5b7e9a10", "--dir", str(tmp_path))
    assert "files       breakdown.json, config.yaml\n" in output


def test_an_unknown_run_is_one_message_and_exit_code_1_and_no_runs_are_no_error(tmp_path):
    write_run(tmp_path, "20260101-120000-smoke-aa", 2.0)
    for arguments in (["show", "zz"], ["compare", "aa", "zz"]):
        code, output = ups("runs", *arguments, "--dir", str(tmp_path))
        assert code == 1
        assert "error: run 'zz': none in" in output
        assert "the latest: aa" in output
        assert "Traceback" not in output
    nowhere = str(tmp_path / "nowhere")
    assert ups("runs", "list", "--dir", nowhere) == (0, f"no runs in {nowhere}\n")
    assert ups("runs", "list", "--dir", nowhere, "--json") == (0, "[]\n")
