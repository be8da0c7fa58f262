"""The flow through a real Prefect server, against a real object store."""

import functools
import json
import re
import threading
from types import SimpleNamespace

import pytest
from prefect.runtime import flow_run

from flows.train_burgers import train_burgers
from tests.live import wait_until
from ups.config import SPLITS, Features
from ups.data.sources import stage
from ups.latents.store import list_entries
from ups.machine.gpu import GpuWatch
from ups.pipeline.state import RunState
from ups.runs.index import find_runs
from ups.units import format_size

PRICE_PER_HOUR = 3.6
ONE_STEP = {"stages__operator__max_steps": 1}
PAGES = "pages of the run"  # the thread
PICTURE = "data:image/png;base64,"
PHASES = {
    "0 validate-config",
    "1 warm-up-device",
    "1 download [train]",
    "1 download [val]",
    "1 download [test]",
    "3 load-latents",
    "4 train-operator",
    "5 evaluate",
}


def seconds(breakdown, phase):
    return next(row["seconds"] for row in breakdown["phases"] if row["phase"] == phase)


def test_the_plans_three_runs_generate_reuse_and_invalidate(
    flow_config, run, shown, tmp_path, monkeypatch
):
    all_splits = threading.Barrier(len(SPLITS), timeout=20)  # they are fetched at the same time

    def stage_together(*arguments, **options):
        all_splits.wait()
        return stage(*arguments, **options)

    monkeypatch.setattr("tasks.phases.stage", stage_together)
    path = flow_config(startup__price_per_hour=PRICE_PER_HOUR)
    state, tasks, first = run(path)
    assert state.is_completed()
    key = first["config_hash"]
    assert tasks[f"2 build-latent-cache [{key}]"] == "Completed"
    assert tasks.keys() >= PHASES
    assert first["cache_reused"] is False
    assert first["nrmse_rollout"] < first["nrmse_persistence"]

    state, tasks, second = run(path)
    assert state.is_completed()
    assert tasks[f"2 build-latent-cache [{key}] reused"] == "Cached"
    assert second["cache_reused"] is True
    assert second["metrics"]["startup/cache_reused"] == 1
    assert "nothing fetched" in next(
        row["bound"] for row in second["phases"] if row["phase"] == "download"
    )
    assert second["nrmse_rollout"] == pytest.approx(first["nrmse_rollout"], rel=1e-4)

    state, tasks, third = run(path, latent_dim=8)
    assert state.is_completed()
    assert third["config_hash"] != key
    assert third["cache_reused"] is False
    assert third["changed"] == ["latent.dim 8, the cached entry has 16"]
    assert shown(state)[0] == f"smoke latent.dim=8 [{third['config_hash']}]"
    kept = {manifest.config_hash for manifest in list_entries(tmp_path / "cache")}
    assert kept == {key, third["config_hash"]}
    for breakdown in (first, second, third):
        assert breakdown["ttfs_s"] > 0
        assert 0 <= breakdown["unaccounted_s"] < 0.5 * breakdown["ttfs_s"]
        assert seconds(breakdown, "validate") < 0.25 * breakdown["ttfs_s"]
        assert breakdown["cost_usd"] == pytest.approx(breakdown["ttfs_s"] * 0.001)
        assert breakdown["metrics"]["startup/ttfs_s"] == breakdown["ttfs_s"]


def test_a_run_is_called_by_what_was_changed_from_its_start_on(monkeypatch):
    given = {"config": "/there/smoke.yaml", "latent_dim": 48, "seed": 1, "epochs": None}
    overrides = {"training.pairs_per_step": None}
    stand_in = SimpleNamespace(parameters={**given, "overrides": overrides})
    monkeypatch.setattr("flows.train_burgers.flow_run", stand_in)
    named = "smoke pairs_per_step=null latent.dim=48 seed=1"
    assert train_burgers.flow_run_name() == named
    stand_in.parameters = {}  # of a run that is cancelled before they are known
    assert train_burgers.flow_run_name() == "smoke"


def test_a_run_leaves_its_record_in_the_ui_and_in_its_folder_and_no_secret_anywhere(
    first_run, shown, s3
):
    breakdown = first_run.breakdown
    run_name, left = shown(first_run.state)
    assert {"overhead", "overhead-breakdown", "training", "download-train"} <= left.keys()
    assert left["training"].startswith("## smoke: 3 epochs\n")
    markdown = left["overhead"]
    assert markdown.count("data:image/png;base64,") == 2
    assert breakdown["config_hash"] in markdown
    assert run_name == f"smoke [{breakdown['config_hash']}]"
    folder = first_run.folder / "runs" / breakdown["run"]
    present = {path.name for path in folder.iterdir()}
    assert present == {
        ".lock",
        "breakdown.json",
        "checkpoints",
        "config.yaml",
        "gantt.png",
        "metrics.jsonl",
        "prediction.png",
        "run.json",
        "run.log",
        "scores.json",
        "trace.json",
    }
    record = json.loads((folder / "run.json").read_text())
    assert record["state"] == "completed"
    assert record["flow_run_id"] == str(first_run.state.state_details.flow_run_id)
    assert "epoch 3/3" in (folder / "run.log").read_text()
    gpu = next(row for row in json.loads(left["overhead-breakdown"]) if row["phase"] == "GPU")
    assert gpu["what bounds it"]
    assert f"| GPU |  |  | {gpu['what bounds it']} |" in markdown
    if breakdown["gpu"] is None:
        assert gpu["what bounds it"] == breakdown["gpu_note"]
        assert "training/gpu_utilization_pct" not in breakdown["metrics"]
    *rows, total = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert breakdown["metrics"].items() <= total.items()
    assert total["test/nrmse_rollout"] == breakdown["nrmse_rollout"]
    assert rows[0]["train/lr"] > rows[-1]["train/lr"] > 0
    assert record["started_at"] < rows[0]["time"] < rows[1]["time"] < record["ended_at"]
    assert s3.secret_key not in str(left)
    for path in first_run.folder.rglob("*"):
        assert not (path.is_file() and s3.secret_key.encode() in path.read_bytes()), path


def test_trackers_get_curves_startup_breakdown_and_pictures_without_a_key(
    flow_config, run, tmp_path, no_wandb_key, read_wandb, read_tensorboard, s3, monkeypatch
):
    monkeypatch.setenv("UPS_PROGRESS_S", "0")
    on = {"logging.wandb.enabled": True, "logging.tensorboard.enabled": True}
    state, _, breakdown = run(flow_config(evaluation__num_examples=1), overrides=on)
    assert state.is_completed()
    folder = tmp_path / "runs" / breakdown["run"]
    log = (folder / "run.log").read_text()
    assert "WARNING" not in log, log
    assert "wandb: kept offline; `wandb sync" in log
    assert "ups.progress: [train] fetched 1 of 1 MB (100%)" in log
    # The last line may be of fewer: one comes for another tenth only.
    assert re.search(r"ups.progress: encoded 2[0-5] of 25 trajectories", log)
    *rows, total = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    curves = ("train/loss", "val/nrmse_rollout", "train/lr", "training/epoch_time_sec")

    tracked = read_wandb(folder)
    assert tracked.exit_code == 0
    assert tracked.config["training"]["batch_size"] == 6
    assert tracked.config["run"]["commit"]
    *epochs, last = tracked.history
    for epoch, row in zip(epochs, rows, strict=True):
        assert {name: epoch[name] for name in ("epoch", *curves)} == {
            name: row[name] for name in ("epoch", *curves)
        }
    figures = {name: value for name, value in total.items() if name != "time"}
    assert {name: last[name] for name in figures} == figures
    assert {"startup/ttfs_s", "startup/cache_precompute_time_min", "startup/cache_reused",
            "startup/total_startup_time_min", "training/epoch_time_sec"} <= last.keys()  # fmt: skip
    files = tracked.path.parent / "files"
    table = json.loads((files / last["startup/breakdown/path"]).read_text())
    assert table["columns"] == ["phase", "seconds", "share", "what bounds it"]
    assert [row[:2] for row in table["data"][:-1]] == [
        [row["phase"], row["seconds"]] for row in breakdown["phases"]
    ]
    for name in ("gantt", "prediction"):
        assert (files / last[f"pictures/{name}/path"]).read_bytes()[1:4] == b"PNG"

    events = read_tensorboard(folder)
    for name in curves:
        scalars = [(event.step, event.value) for event in events.Scalars(name)]
        expected = [(row["epoch"], pytest.approx(row[name])) for row in rows]
        assert scalars[: len(rows)] == expected
    assert events.Scalars("startup/ttfs_s")[0].value == pytest.approx(breakdown["ttfs_s"])
    pictures = {tag: events.Images(tag)[0] for tag in events.Tags()["images"]}
    assert pictures.keys() == {"pictures/gantt", "pictures/prediction"}
    assert pictures["pictures/gantt"].encoded_image_string == (folder / "gantt.png").read_bytes()
    texts = {
        tag: events.Tensors(tag)[0].tensor_proto.string_val[0] for tag in events.Tags()["tensors"]
    }
    assert b"| queue | " in texts["startup/breakdown"]
    assert b"batch_size: 6" in texts["config"]
    for path in folder.rglob("*"):
        assert not (path.is_file() and s3.secret_key.encode() in path.read_bytes()), path


def test_the_use_of_a_gpu_is_shown_by_phase(flow_config, run, shown, make_nvml, monkeypatch):
    nvml = make_nvml(busy=(75,))
    watched = functools.partial(RunState, gpu=GpuWatch(10, nvml=nvml))
    monkeypatch.setattr("flows.train_burgers.RunState", watched)
    longer = {"stages.operator.epochs": 1, "training.batch_size": 1}
    state, _, breakdown = run(flow_config(), overrides=longer)
    assert state.is_completed()
    assert breakdown["gpu_note"] == ""
    assert {"train", "first epoch"} <= breakdown["gpu"].keys()
    assert breakdown["metrics"]["training/gpu_utilization_pct"] == 75
    markdown = shown(state)[1]["overhead"]
    assert "| GPU |  |  | first epoch 75 % busy" in markdown
    assert "| first epoch | 75 % | 75 % | 0% | 3,000 | 250 |" in markdown


def test_legacy_mode_trains_the_same_operator(first_run, flow_config, run):
    state, tasks, legacy = run(flow_config(), features=Features.legacy())
    assert state.is_completed()
    assert "1 warm-up-device" not in tasks
    assert legacy["cache_reused"] is False
    assert legacy["nrmse_rollout"] == pytest.approx(first_run.breakdown["nrmse_rollout"], rel=1e-3)


def test_training_without_a_cache_encodes_on_demand(flow_config, run):
    state, tasks, breakdown = run(flow_config(features__preload="off", **ONE_STEP))
    assert state.is_completed()
    assert not any("build-latent-cache" in name for name in tasks)
    assert breakdown["cache_reused"] is None


def test_startup_and_curves_are_shown_while_it_trains_and_in_full_in_the_end(
    flow_config, run, tmp_path, artifacts, monkeypatch
):
    import tasks.report
    import ups.training.loop

    monkeypatch.setattr(tasks.report, "FIRST_PAUSES_S", 1000 * (0.02,))
    monkeypatch.setattr(tasks.report, "MOST_SHARE", 1.0)
    validate, seen, listed = ups.training.loop.validate, [], []

    def look_and_validate(*arguments):
        """At the end of an epoch's steps, before its error is known."""
        run_id, epoch = flow_run.id, len(seen) + 1
        wait_until(lambda: f"smoke: epoch {epoch} of 3" in artifacts(run_id).get("training", ""))
        if epoch > 1:
            wait_until(lambda: "before the end of epoch 1" not in artifacts(run_id)["overhead"])
        seen.append(artifacts(run_id))
        listed.extend(find_runs(tmp_path / "runs"))
        return validate(*arguments)

    monkeypatch.setattr(ups.training.loop, "validate", look_and_validate)
    state, _, breakdown = run(flow_config(evaluation__num_examples=1))
    assert state.is_completed()
    step, epoch, _ = seen
    in_the_end = artifacts(state.state_details.flow_run_id)  # of each key one
    assert step.keys() == epoch.keys() == in_the_end.keys()

    line = f"time to first step {breakdown['ttfs_s']:.2f} s"
    pages = [step["overhead"], epoch["overhead"], in_the_end["overhead"]]
    assert all(line in page for page in pages)
    assert all("- the first step waited for: " in page for page in pages)
    assert [page.count(PICTURE) for page in pages] == [1, 1, 2]
    assert ["cache built" in page for page in pages] == [False, False, True]
    assert "- idle until epoch 2: not known before the end of epoch 1" in pages[0]
    idle = f"- idle until epoch 2: {breakdown['idle_s']:.2f} s"
    assert [idle in page for page in pages] == [False, True, True]
    assert ["nRMSE: not known before the end of the run" in p for p in pages] == [True, True, False]
    rows = [json.loads(page["overhead-breakdown"]) for page in (step, in_the_end)]
    assert rows[0][0] == rows[1][0]

    assert PICTURE not in step["training"]
    assert PICTURE in epoch["training"]
    assert "| 1 | " in epoch["training"]
    assert [one.state for one in listed] == 3 * ["running"]
    assert [one.ttfs_s for one in listed] == 3 * [breakdown["ttfs_s"]]


def test_a_server_that_does_not_answer_while_it_trains_holds_up_no_run(
    flow_config, run, artifacts, monkeypatch, caplog
):
    import tasks.report

    asked, gate = [], threading.Event()
    show = tasks.report.Artifacts.show

    def show_once_it_answers(*arguments):
        asked.append(arguments)
        if len(asked) == 1:
            gate.wait(60)
        show(*arguments)
        if arguments[1] == "training" and threading.current_thread().name != PAGES:
            gate.set()  # when all has been shown
            wait_until(lambda: PAGES not in {thread.name for thread in threading.enumerate()})

    monkeypatch.setattr(tasks.report.Artifacts, "show", show_once_it_answers)
    monkeypatch.setattr(tasks.report, "END_S", 0.1)
    state, _, breakdown = run(flow_config(evaluation__num_examples=1))
    assert state.is_completed()
    assert breakdown["nrmse_rollout"]
    assert len(asked) > 1
    assert "still being written" in caplog.text
    assert gate.is_set()
    assert artifacts(state.state_details.flow_run_id)["overhead"].count(PICTURE) == 2


def test_a_breakdown_that_cannot_be_published_does_not_fail_the_run(flow_config, run, monkeypatch):
    import tasks.artifacts

    def refuse(**_):
        raise RuntimeError("503: database is locked")

    monkeypatch.setattr(tasks.artifacts, "create_table_artifact", refuse)
    state, _, breakdown = run(flow_config(**ONE_STEP))
    assert state.is_completed()
    assert breakdown["ttfs_s"] > 0


def test_three_splits_of_one_object_are_fetched_once_and_counted_once(flow_config, run, tiny_data):
    object_key, bucket = "burgers1d/burgers1d_train.h5", "tiny"
    rows = {"train": [0, 12], "val": [12, 16], "test": [16, 20]}
    sources = {s: [{"key": object_key, "bucket": bucket, "rows": r}] for s, r in rows.items()}
    state, _, breakdown = run(flow_config(data__sources=sources, **ONE_STEP))
    assert state.is_completed()
    download = next(row for row in breakdown["phases"] if row["phase"] == "download")
    size = format_size((tiny_data / "burgers1d_train.h5").stat().st_size)
    assert download["bound"].startswith(f"network: {size}, ")
