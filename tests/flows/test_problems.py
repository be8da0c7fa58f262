"""Several tasks through the flow: a download for each split, an entry for each task."""

import pytest
import yaml

from ups.config import SPLITS, Features, dump_config
from ups.data.objectstore import ObjectStore
from ups.latents.store import list_entries

TASKS = ("burgers1d", "advection1d")


@pytest.fixture
def mixed_flow_config(flow_config, mixed_config, mixed_data, bucket, tmp_path):
    """`mixed_flow_config(**overrides)`: a config of two tasks whose splits are objects."""
    objects = ObjectStore()
    for name in TASKS:
        for split in SPLITS:
            file = f"{name}_{split}.h5"
            objects.upload(mixed_data / file, bucket, f"mixed/{file}")
    objects.close()

    def write(**overrides):
        tasks = [
            {
                "name": name,
                "sources": {s: [{"key": f"mixed/{name}_{s}.h5", "bucket": bucket}] for s in SPLITS},
            }
            for name in TASKS
        ]
        given = {"data__root": str(tmp_path / "staged"), "data__task": tasks, **overrides}
        given = {"stages__operator__epochs": 1, **given}
        path = tmp_path / "mixed.yaml"
        path.write_text(dump_config(mixed_config(**given)))
        return str(path)

    return write


def test_a_second_run_that_changes_one_problem_reuses_the_others_entry(
    mixed_flow_config, run, shown, tmp_path
):
    path = mixed_flow_config(evaluation__num_examples=1)
    state, tasks, first = run(path)
    keys = {name: figures["config_hash"] for name, figures in first["tasks"].items()}
    assert list(keys) == list(TASKS)
    for name in TASKS:
        assert tasks[f"2 build-latent-cache [{keys[name]}]"] == "Completed"
        for split in SPLITS:
            assert tasks[f"1 download [{name} {split}]"] == "Completed"
        assert first["tasks"][name]["cache_reused"] is False
    assert first["config_hash"] == f"{keys['burgers1d']}, {keys['advection1d']}"
    assert first["cache_reused"] is False
    for name in ("3 load-latents", "4 train-operator", "5 evaluate", "6 report-overhead"):
        assert tasks[name] == "Completed"
    own = [first["tasks"][name]["nrmse_rollout"] for name in TASKS]
    assert first["nrmse_rollout"] == pytest.approx(sum(own) / 2)
    assert 0 <= first["unaccounted_s"] < 0.5 * first["ttfs_s"]
    run_name, artifacts = shown(state)
    assert run_name == f"smoke [{first['config_hash']}]"
    assert artifacts["overhead"].count("data:image/png;base64,") == 3  # bars, and one a task
    for name in TASKS:
        figures = first["tasks"][name]
        row = f"| {name} | {keys[name]} | built | {figures['nrmse_rollout']:.4f} |"
        assert row in artifacts["overhead"]
    assert {p.name for p in (tmp_path / "runs" / first["run"]).glob("*.png")} == {
        "gantt.png",
        "prediction-advection1d.png",
        "prediction-burgers1d.png",
    }

    tree = yaml.safe_load((tmp_path / "mixed.yaml").read_text())
    tree["data"]["task"][1]["sources"]["train"][0]["rows"] = [0, 8]
    tree["evaluation"]["num_examples"] = 0
    (tmp_path / "mixed.yaml").write_text(yaml.safe_dump(tree))
    _, tasks, second = run(path)
    assert tasks[f"2 build-latent-cache [{keys['burgers1d']}] reused"] == "Cached"
    changed = second["tasks"]["advection1d"]
    assert changed["config_hash"] != keys["advection1d"]
    assert tasks[f"2 build-latent-cache [{changed['config_hash']}]"] == "Completed"
    assert (second["tasks"]["burgers1d"]["cache_reused"], changed["cache_reused"]) == (True, False)
    assert second["cache_reused"] is False
    assert any("sources.train[0].rows" in line for line in second["changed"])
    bound = next(row["bound"] for row in second["phases"] if row["phase"] == "cache")
    assert bound.startswith("read, encode, write: 12 trajectories")
    assert bound.endswith("reused")
    assert len(list(list_entries(tmp_path / "cache"))) == 3

    state, tasks, third = run(path, overrides={"training.seed": 1})
    assert third["cache_reused"] is True
    assert sum(state == "Cached" for state in tasks.values()) == 2
    assert shown(state)[0] == f"smoke seed=1 [{third['config_hash']}] reused"


def test_legacy_mode_and_encoding_on_demand_train_the_same_operator_on_several_problems(
    mixed_flow_config, run
):
    path = mixed_flow_config()
    _, tasks, legacy = run(path, features=Features.legacy())
    assert sum("build-latent-cache" in name for name in tasks) == 2
    _, tasks, on_demand = run(path, features=Features(preload="off"))
    assert not any("build-latent-cache" in name for name in tasks)
    first, second = legacy["tasks"], on_demand["tasks"]
    for name in TASKS:
        assert second[name]["nrmse_rollout"] == pytest.approx(
            first[name]["nrmse_rollout"], rel=1e-2
        )
