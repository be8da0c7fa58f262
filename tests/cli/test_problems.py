"""Several tasks from the shell: `ups cache build`, `train` and `runs` on a config with a list."""

import json
import re

import pytest
import yaml

from ups.runs.metrics import read_metrics

TASKS = ("burgers1d", "burgers1d_nu0.1", "advection1d")


@pytest.fixture
def ups(mixed_config, ups_on):
    """`ups(*arguments)`: what is printed; CONFIG stands for the mixed config's path."""
    run = ups_on(mixed_config(stages__operator__epochs=1))

    def call(*arguments):
        code, output, errors = run(*arguments)
        assert code == 0, output + errors
        return output

    return call


def test_cache_build_says_what_became_of_each_problems_entry(ups):
    lines = ups("cache", "build", "CONFIG").splitlines()
    assert [line.split()[0] for line in lines] == ["built"] * 3
    assert [line.split()[3] for line in lines] == list(TASKS)
    again = json.loads(ups("cache", "build", "CONFIG", "--json"))
    assert [entry["task"] for entry in again] == list(TASKS)
    assert all(entry["reused"] for entry in again)
    assert [entry["config_hash"] for entry in again] == [line.split()[1] for line in lines]


def test_a_run_is_trained_shown_and_compared_with_the_score_of_each_problem(ups, tmp_path):
    output = ups("train", "CONFIG", "--run-id", "one")
    (folder,) = (tmp_path / "runs").glob("*-one")
    metrics = read_metrics(folder).summary
    assert f"test rollout nRMSE {metrics['test/nrmse_rollout']:.4f}" in output
    for name in TASKS:
        assert f"  {name} rollout nRMSE {metrics[f'test/{name}/nrmse_rollout']:.4f}" in output
    assert metrics["startup/cache_reused"] == 0

    path = tmp_path / "tiny.yaml"
    tree = yaml.safe_load(path.read_text())
    tree["data"]["task"].pop(1)
    path.write_text(yaml.safe_dump(tree))
    ups("train", "CONFIG", "--run-id", "two")
    assert read_metrics(next((tmp_path / "runs").glob("*-two"))).summary["startup/cache_reused"]
    runs = ("--dir", str(tmp_path / "runs"))
    shown = ups("runs", "show", "one", *runs)
    assert ", the mean over the problems; persistence" in shown
    for name in TASKS:
        assert re.search(rf"{name} .* {metrics[f'test/{name}/nrmse_rollout']:.4f} ", shown), shown
    compared = ups("runs", "compare", "one", "two", *runs)
    assert "advection1d" in compared
    tree = json.loads(ups("runs", "compare", "one", "two", *runs, "--json"))
    assert list(tree["tasks"]) == ["burgers1d", "advection1d"]  # which both were scored on
    assert set(tree["config"]) == {
        f"data.task.burgers1d_nu0.1.{key}" for key in ("name", "equation")
    }
    assert tree["tasks"]["advection1d"]["difference"] == pytest.approx(
        tree["tasks"]["advection1d"]["after"] - tree["tasks"]["advection1d"]["before"]
    )
    (listed, _) = json.loads(ups("runs", "list", *runs, "--json"))
    assert listed["nrmse_rollout"] is not None
