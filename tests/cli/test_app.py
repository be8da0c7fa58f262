"""`ups cache build` and `ups train`: the whole path from a shell, without Prefect."""

import json
import re
import shutil

import pytest

from ups.cli.options import parse_settings
from ups.config import load_config
from ups.errors import ConfigError
from ups.pipeline.state import scores_of_complete_run
from ups.runs.breakdown import Breakdown
from ups.runs.metrics import read_metrics

PLAN = {
    "startup/ttfs_s",
    "startup/cache_precompute_time_min",
    "startup/cache_reused",
    "startup/total_startup_time_min",
    "training/epoch_time_sec",
}
TWO_EPOCHS = ("--set", "stages.operator.epochs=2")


@pytest.fixture
def ups(tiny_config, ups_on):
    return ups_on(tiny_config())


def test_the_cache_is_built_once_and_again_when_told(ups):
    code, first, _ = ups("cache", "build", "CONFIG", "--num-workers", "2", "--batch-size", "4")
    assert (code, first.startswith("built ")) == (0, True), first
    _, second, _ = ups("cache", "build", "CONFIG")
    assert second.startswith("reused ")
    _, third, _ = ups("cache", "build", "CONFIG", "--overwrite")
    assert third.startswith("built ")
    _, other, _ = ups("cache", "build", "CONFIG", "--cache-dtype", "float32", "--json")
    entry = json.loads(other)
    assert entry["reused"] is False
    assert entry["config_hash"] != first.split()[1]


def test_train_ends_with_the_score_and_resumes_by_its_name(ups, tmp_path):
    code, output, _ = ups("train", "CONFIG", "--run-id", "mine", *TWO_EPOCHS)
    assert code == 0, output
    assert re.search(r"test rollout nRMSE \d\.\d{4}, persistence \d\.\d{4}", output)
    assert "first optimizer step" in output
    (run_dir,) = (tmp_path / "runs").glob("*-mine")
    first = read_metrics(run_dir)
    assert len(first.epochs) == 2
    assert first.summary.keys() >= PLAN
    shutil.rmtree(tmp_path / "cache")
    code, output, errors = ups("train", "CONFIG", "--run-id", "mine", *TWO_EPOCHS, "--json")
    assert code == 0
    assert f"{run_dir} is complete, nothing is trained: stages.operator.epochs is 2" in errors
    again = json.loads(output)
    assert again["folder"] == str(run_dir)
    assert "startup/ttfs_s" not in again["metrics"]  # every step was taken before
    name = "test/nrmse_rollout"
    assert again["metrics"][name] == read_metrics(run_dir).summary[name] == first.summary[name]
    config = load_config(run_dir / "config.yaml")
    assert scores_of_complete_run(run_dir, config)[name] == first.summary[name]
    text = (run_dir / "metrics.jsonl").read_text().splitlines()[-1]
    for word in ("Infinity", "null"):  # then it is scored anew
        scored = re.sub(rf'("{name}"): [0-9.e-]+', rf"\1: {word}", text)
        (run_dir / "metrics.jsonl").write_text(scored)
        assert read_metrics(run_dir).summary.keys() == first.summary.keys()
        assert scores_of_complete_run(run_dir, config) == {}
    resume = ("--resume", str(run_dir / "checkpoints" / "last.pt"))
    code, _, errors = ups("train", "CONFIG", "--run-id", "other", *TWO_EPOCHS, *resume)
    assert code == 1
    assert "is complete: it has had 2 epochs" in errors
    assert "raise that to train on" in errors
    code, output, _ = ups("validate", "CONFIG", *TWO_EPOCHS, *resume)
    assert (code, "is complete: it has had 2 epochs" in output) == (1, True)
    assert [path.name for path in (tmp_path / "runs").glob("*-*")] == [run_dir.name]
    assert not (tmp_path / "cache").exists()
    assert len(list((tmp_path / "runs").glob("*-mine"))) == 1
    assert json.loads((run_dir / "scores.json").read_text())["num_trajectories"] == 6  # of test


def test_train_goes_on_from_a_checkpoint_of_another_run(ups, tmp_path):
    one, three = ("--set", "stages.operator.epochs=1"), ("--set", "stages.operator.epochs=3")
    assert ups("train", "CONFIG", "--run-id", "first", *one)[0] == 0
    (first,) = (tmp_path / "runs").glob("*-first")
    last = str(first / "checkpoints" / "last.pt")
    code, _, errors = ups("train", "CONFIG", "--run-id", "second", *three, "--resume", last)
    assert (code, f"resuming from {last} at epoch 2, step 4" in errors) == (0, True), errors


def test_train_leaves_the_breakdown_that_a_run_by_prefect_leaves(ups, read_tensorboard, tmp_path):
    on = ("--set", "logging.tensorboard.enabled=true", "--set", "evaluation.num_examples=1")
    code, output, _ = ups("train", "CONFIG", "--run-id", "mine", *TWO_EPOCHS, *on, "--json")
    assert code == 0, output
    metrics = json.loads(output)["metrics"]
    (run_dir,) = (tmp_path / "runs").glob("*-mine")
    assert (run_dir / "gantt.png").read_bytes()[1:4] == b"PNG"
    breakdown = Breakdown.load(run_dir)
    phases = {row.phase: row.seconds for row in breakdown.phases}
    ended = ["boot", "validate", "download", "warm-up", "cache", "load", "first step"]
    waited = [phase for phase in phases if phase == "first rows"]  # where they came after the step
    assert list(phases) == [*ended[:-1], *waited, ended[-1], "unaccounted"]
    assert phases["unaccounted"] < 0.5
    assert sum(phases.values()) >= breakdown.ttfs_s - 1e-3  # downloads begin beside the imports
    (*_, first), (rest,) = (
        [span for span in breakdown.spans if span.phase == phase]
        for phase in ("first step", "train")
    )
    assert first.end == rest.start == breakdown.triggered_at + breakdown.ttfs_s < rest.end
    assert breakdown.metrics.items() <= metrics.items()
    assert metrics["startup/ttfs_s"] == breakdown.ttfs_s
    assert metrics["startup/cache_precompute_time_min"] * 60 == pytest.approx(phases["cache"])
    assert (breakdown.cache_reused, breakdown.failed) == (False, None)
    assert breakdown.nrmse_rollout == metrics["test/nrmse_rollout"]
    assert breakdown.gpu or breakdown.gpu_note

    events = read_tensorboard(run_dir)
    table = events.Tensors("startup/breakdown")[0].tensor_proto.string_val[0].decode()
    assert "| first step | " in table
    assert {"pictures/gantt", "pictures/prediction"} == set(events.Tags()["images"])


def test_settings_are_yaml_and_need_a_key():
    assert parse_settings(["a.b=[1, 2]", "c=true"]) == {"a.b": [1, 2], "c": True}
    with pytest.raises(ConfigError, match="expected KEY=VALUE"):
        parse_settings(["latent.dim"])
    with pytest.raises(ConfigError, match="a: found '\\[1', expected a value in YAML"):
        parse_settings(["a=[1"])
