"""Runs that fail: when, with which message, and what they leave."""

import json
import re
import shutil

import h5py
import numpy as np
import pytest
import torch

from ups.latents.store import list_entries


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
    assert next(r["seconds"] for r in breakdown["phases"] if r["phase"] == "download") > 0


def missing_bucket():
    return [{"key": "burgers1d/burgers1d_train.h5", "bucket": "nowhere"}]


def test_a_wrong_config_fails_the_run_with_the_key(flow_config, run, shown):
    state, tasks, _ = run(flow_config(), latent_tokens=7)
    assert state.is_failed()
    assert "latent.tokens: found 7, expected a divisor of the 256 points" in state.message
    assert tasks == {"0 validate-config": "Failed"}
    page = shown(state)[1]["overhead"]
    assert "latent.tokens: found 7" in page.split("**Failed:**")[1]


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
    flow_config, run, tiny_data, s3_client, bucket, shown, tmp_path
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
    page = shown(state)[1]["overhead"].splitlines()
    assert page[0].startswith("## smoke: failed in ")
    (how_far,) = [line for line in page if line.startswith("- came as far as: done: ")]
    assert "0 validate-config" in how_far.partition("; failed: ")[0]
    assert "not begun: evaluate" in how_far
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
    told = [record for record in caplog.records if "AWS_ACCESS_KEY_ID" in record.message]
    by = [record.name for record in told]
    assert by == 2 * ["prefect.task_runs"] + ["prefect.flow_runs"]  # its line, and the ends
    line, *ends = [record.message.partition("StoreRefuses: ")[0] for record in told]
    assert (line, ends) == ("", 2 * ["Finished in state Failed('"])  # not with Prefect's words
    assert not [record for record in caplog.records if record.exc_info]
    assert state.message.startswith("StoreRefuses: ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the message is for machines without CUDA")
def test_cuda_that_is_not_there_fails_the_run(flow_config, run):
    state, _, _ = run(flow_config(training__device="cuda"))
    assert state.is_failed()
    assert "torch sees no CUDA device" in state.message
