"""The flow through a real Prefect server, against a real object store."""

import functools
import json
import os
import re
import shutil
import threading

import h5py
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flows.train_burgers import train_burgers
from ups.config import SPLITS, Features
from ups.data.sources import stage
from ups.latents.build import ensure
from ups.latents.entries import entries
from ups.latents.prune import remove
from ups.latents.store import list_entries
from ups.machine.gpu import GpuWatch
from ups.pipeline.state import RunState
from ups.runs.stored import RunInfo
from ups.units import format_size

PRICE_PER_HOUR = 3.6
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
    flow_config, run, tmp_path, monkeypatch
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
    kept = {manifest.config_hash for manifest in list_entries(tmp_path / "cache")}
    assert kept == {key, third["config_hash"]}
    for breakdown in (first, second, third):
        assert breakdown["ttfs_s"] > 0
        assert 0 <= breakdown["unaccounted_s"] < 0.5 * breakdown["ttfs_s"]
        assert seconds(breakdown, "validate") < 0.25 * breakdown["ttfs_s"]
        assert breakdown["cost_usd"] == pytest.approx(breakdown["ttfs_s"] * 0.001)
        assert breakdown["metrics"]["startup/ttfs_s"] == breakdown["ttfs_s"]


def test_a_run_leaves_its_record_in_the_ui_and_in_its_folder_and_no_secret_anywhere(
    flow_config, run, shown, tmp_path, s3
):
    state, _, breakdown = run(flow_config())
    run_name, left = shown(state)
    assert {"overhead", "overhead-breakdown", "download-train"} <= left.keys()
    markdown = left["overhead"]
    assert markdown.count("data:image/png;base64,") == 2
    assert breakdown["config_hash"] in markdown
    assert run_name == f"smoke [{breakdown['config_hash']}]"
    folder = tmp_path / "runs" / breakdown["run"]
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
    }
    record = json.loads((folder / "run.json").read_text())
    assert record["state"] == "completed"
    assert record["flow_run_id"] == str(state.state_details.flow_run_id)
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
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == s3.secret_key
    assert s3.secret_key not in str(left)
    for path in (
        path for name in ("runs", "cache", "staged") for path in (tmp_path / name).rglob("*")
    ):
        assert not (path.is_file() and s3.secret_key.encode() in path.read_bytes()), path


def test_trackers_get_curves_startup_breakdown_and_pictures_without_a_key(
    flow_config, run, tmp_path, no_wandb_key, read_wandb, s3, monkeypatch
):
    monkeypatch.setenv("UPS_PROGRESS_S", "0")
    on = {"logging.wandb.enabled": True, "logging.tensorboard.enabled": True}
    state, _, breakdown = run(flow_config(), overrides=on)
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

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
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


def test_a_damaged_or_removed_entry_behind_a_cached_state_is_built_again(
    flow_config, run, tmp_path
):
    path = flow_config()
    _, _, first = run(path)
    next((tmp_path / "cache" / first["config_hash"]).glob("*/train_000.safetensors")).unlink()
    state, tasks, again = run(path)
    assert state.is_completed()
    assert again["cache_reused"] is False
    assert tasks[f"2 build-latent-cache [{first['config_hash']}]"] == "Completed"
    _, tasks, _ = run(path)
    assert tasks[f"2 build-latent-cache [{first['config_hash']}] reused"] == "Cached"
    (entry,) = [entry for entry in entries(tmp_path / "cache") if entry.current]
    assert remove(entry)
    state, tasks, _ = run(path)
    assert state.is_completed()
    assert tasks[f"2 build-latent-cache [{first['config_hash']}]"] == "Completed"


def test_a_valid_entry_on_a_disk_that_can_only_be_read_is_reused_and_trained_on(
    flow_config, run, tiny_config, stage_all, read_only
):
    config = tiny_config()
    entry = ensure(config, stage_all(config))
    written = sorted(config.training.latent_cache_dir.rglob("*"))
    cache_dir = read_only(config.training.latent_cache_dir)
    with pytest.raises(OSError, match="Read-only"):
        (cache_dir / "x").touch()
    path = flow_config(training__latent_cache_dir=str(cache_dir), stages__operator__max_steps=1)
    state, tasks, breakdown = run(path)
    assert state.is_completed()
    assert tasks[f"2 build-latent-cache [{entry.config_hash}] reused"] == "Completed"
    assert breakdown["cache_reused"] is True
    # Nothing is tried either: where this path is resolved, it is one that can be written.
    assert sorted(config.training.latent_cache_dir.rglob("*")) == written


def test_another_cache_directory_never_answers(flow_config, run, tmp_path):
    _, _, first = run(flow_config())
    elsewhere = str(tmp_path / "elsewhere")
    _, _, other = run(flow_config(), overrides={"training.latent_cache_dir": elsewhere})
    assert other["config_hash"] == first["config_hash"]
    assert other["cache_reused"] is False


def test_overwrite_builds_an_entry_again_and_a_retry_takes_what_it_built(
    flow_config, run, tmp_path, monkeypatch
):
    import flows.train_burgers

    path = flow_config()
    run(path)
    built, load = [], flows.train_burgers.load_latents

    def fail_once(*arguments):
        built.extend(manifest.generation for manifest in list_entries(tmp_path / "cache"))
        if len(built) == 1:
            raise RuntimeError("at the first attempt")
        return load(*arguments)

    monkeypatch.setattr(flows.train_burgers, "load_latents", fail_once)
    before = [manifest.generation for manifest in list_entries(tmp_path / "cache")]
    state, _, retried = run(path, train_burgers.with_options(retries=1), overwrite_cache=True)
    assert state.is_completed(), state.message
    assert before[0] != built[0] == built[1]
    assert RunInfo.load(tmp_path / "runs" / retried["run"]).attempt == 2
    assert retried["cache_reused"] is True


def test_legacy_mode_trains_the_same_operator(flow_config, run):
    path = flow_config()
    _, _, fast = run(path)
    state, tasks, legacy = run(path, features=Features.legacy())
    assert state.is_completed()
    assert "1 warm-up-device" not in tasks
    assert legacy["cache_reused"] is False
    assert legacy["nrmse_rollout"] == pytest.approx(fast["nrmse_rollout"], rel=1e-3)


def test_training_without_a_cache_encodes_on_demand(flow_config, run):
    state, tasks, breakdown = run(flow_config(features__preload="off"))
    assert state.is_completed()
    assert not any("build-latent-cache" in name for name in tasks)
    assert breakdown["cache_reused"] is None


def test_a_missing_bucket_fails_the_run_and_reports_what_there_is(flow_config, run, tmp_path):
    state, tasks, breakdown = run(flow_config(), overrides={"data.sources.train": missing_bucket()})
    assert state.is_failed()
    assert "nowhere" in state.message
    assert "4 train-operator" not in tasks
    record = json.loads((tmp_path / "runs" / breakdown["run"] / "run.json").read_text())
    assert record["state"] == "failed"
    assert record["error"].startswith("ObjectUnavailable")
    assert breakdown["ttfs_s"] is None
    assert "ObjectUnavailable" in breakdown["failed"]
    assert seconds(breakdown, "download") > 0


def missing_bucket():
    return [{"key": "burgers1d/burgers1d_train.h5", "bucket": "nowhere"}]


def test_a_wrong_config_fails_the_run_with_the_key(flow_config, run):
    state, tasks, _ = run(flow_config(), latent_tokens=7)
    assert state.is_failed()
    assert "latent.tokens: found 7, expected a divisor of data.grid_points (256)" in state.message
    assert tasks == {"0 validate-config": "Failed"}


def test_all_faults_fail_the_run_at_once_before_any_download(flow_config, run, tmp_path):
    path = flow_config(
        training__device="cpu", training__compile="graph", data__endpoint_url="no-url"
    )
    (tmp_path / "taken").write_text("")
    state, tasks, breakdown = run(
        path,
        resume_from=str(tmp_path / "none.pt"),
        overrides={"training.latent_cache_dir": str(tmp_path / "taken" / "cache")},
    )
    assert state.is_failed()
    assert tasks == {"0 validate-config": "Failed", "6 report-overhead": "Completed"}
    for fault in (
        "4 faults, found before",
        "expected http(s)://host[:port]",
        "is a file, expected a folder",
        "captures a CUDA graph",
        "no checkpoint",
    ):
        assert fault in state.message
    assert not (tmp_path / "staged").exists()
    assert [row["phase"] for row in breakdown["phases"]][:3] == ["queue", "boot", "validate"]
    record = json.loads((tmp_path / "runs" / breakdown["run"] / "run.json").read_text())
    assert record["error"].startswith("ValidationFailed: 4 faults")


def test_nan_in_the_data_fails_the_run_and_leaves_no_entry(
    flow_config, run, tiny_data, s3_client, bucket, tmp_path
):
    broken = tmp_path / "broken.h5"
    broken.write_bytes((tiny_data / "burgers1d_train.h5").read_bytes())
    with h5py.File(broken, "r+") as file:
        file["tensor"][3, 1, 1] = np.nan
    s3_client.upload_file(str(broken), bucket, "broken/train.h5")
    state, _, _ = run(
        flow_config(),
        overrides={"data.sources.train": [{"key": "broken/train.h5", "bucket": bucket}]},
    )
    assert state.is_failed()
    assert "trajectory 3" in state.message
    assert list(list_entries(tmp_path / "cache")) == []


def test_a_file_that_is_no_hdf5_fails_the_run(flow_config, run, s3_client, bucket):
    s3_client.put_object(Bucket=bucket, Key="broken/text.h5", Body=b"not HDF5" * 100)
    state, _, _ = run(
        flow_config(), overrides={"data.sources.val": [{"key": "broken/text.h5", "bucket": bucket}]}
    )
    assert state.is_failed()
    assert "text.h5" in state.message
    assert "HDF5" in state.message


def test_test_files_that_do_not_go_together_fail_the_run_before_it_trains(
    flow_config, run, tiny_data, tmp_path
):
    shutil.copytree(tiny_data, root := tmp_path / "local")
    (root / "burgers1d_test.h5").rename(root / "burgers1d_test_0.h5")
    with h5py.File(root / "burgers1d_test_1.h5", "w") as file:
        file.attrs.update({"Nu": 0.02, "dt": 0.01})
        file["tensor"] = np.ones((2, 21, 256), "<f4")
    local = {"data.sources": None, "data.generate": None, "data.root": str(root)}
    state, tasks, _ = run(flow_config(), overrides=local)
    assert state.is_failed()
    assert re.search(r"have 41 frames and those of .*burgers1d_test_1\.h5 21", state.message)
    assert "4 train-operator" not in tasks


def test_missing_credentials_fail_the_run_with_a_remedy_that_one_download_and_the_run_tell(
    flow_config, run, monkeypatch, caplog
):
    path = flow_config()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    state, tasks, _ = run(path)
    assert state.is_failed()
    assert "AWS_ACCESS_KEY_ID" in state.message
    downloads = [how for name, how in tasks.items() if "download" in name]
    assert sorted(downloads) == ["Cancelled", "Cancelled", "Failed"]
    told = [record.name for record in caplog.records if "AWS_ACCESS_KEY_ID" in record.message]
    assert told == 2 * ["prefect.task_runs"] + 2 * ["prefect.flow_runs"]  # raised, and its end


@pytest.mark.skipif(torch.cuda.is_available(), reason="the message is for machines without CUDA")
def test_cuda_that_is_not_there_fails_the_run(flow_config, run):
    state, _, _ = run(flow_config(training__device="cuda"))
    assert state.is_failed()
    assert "torch sees no CUDA device" in state.message


def test_a_torn_record_of_a_cached_result_is_a_miss_not_a_failure(flow_config, run, tmp_path):
    path = flow_config()
    _, _, first = run(path)
    record = tmp_path / "cache" / ".prefect" / "results" / f"latents-{first['config_hash']}"
    record.write_bytes(record.read_bytes()[:20])
    state, _, again = run(path)
    assert state.is_completed()
    assert again["cache_reused"] is True  # by the entry itself, whose files are whole


def test_a_breakdown_that_cannot_be_published_does_not_fail_the_run(flow_config, run, monkeypatch):
    import tasks.report

    def refuse(**_):
        raise RuntimeError("503: database is locked")

    monkeypatch.setattr(tasks.report, "create_table_artifact", refuse)
    state, _, breakdown = run(flow_config())
    assert state.is_completed()
    assert breakdown["ttfs_s"] > 0


def test_three_splits_of_one_object_are_fetched_once_and_counted_once(flow_config, run, tiny_data):
    object_key, bucket = "burgers1d/burgers1d_train.h5", "tiny"
    rows = {"train": [0, 12], "val": [12, 16], "test": [16, 20]}
    sources = {s: [{"key": object_key, "bucket": bucket, "rows": r}] for s, r in rows.items()}
    state, _, breakdown = run(flow_config(data__sources=sources))
    assert state.is_completed()
    download = next(row for row in breakdown["phases"] if row["phase"] == "download")
    size = format_size((tiny_data / "burgers1d_train.h5").stat().st_size)
    assert download["bound"].startswith(f"network: {size}, ")
