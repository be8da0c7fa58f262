"""`ups validate`, as typed: on a real store, real files and a cache that was really built."""

import json
import re
import shlex
import shutil

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from deployments.cli.app import app
from tests.documented import commands_run_by
from ups.config import SPLITS
from ups.latents import store
from ups.latents.build import ensure
from ups.latents.key import compute_cache_hash
from ups.validate.check import GROUPS
from ups.validate.run import validate


@pytest.fixture
def ups(in_store, ups_on, tmp_path):
    run = ups_on(in_store())
    return lambda *arguments: run("validate", *arguments, "--benchmarks", str(tmp_path))


def test_a_valid_config_ends_with_exit_code_0_and_the_same_checks_as_lines_and_in_json(ups):
    code, output, errors = ups("CONFIG")
    assert (code, errors) == (0, "")
    headings = [line for line in output.splitlines() if line in GROUPS]
    assert headings == list(GROUPS)
    assert re.search(r"✓ train object +s3://tiny/burgers1d/burgers1d_train.h5: \d+ KB", output)
    assert output.splitlines()[-1].startswith("tiny.yaml: valid; 0 warnings, ")
    tree = json.loads(ups("CONFIG", "--json")[1])
    assert tree["valid"] is True
    assert {check["group"] for check in tree["checks"]} == set(GROUPS)
    for check in tree["checks"]:
        if check["name"] not in ("RAM", "room", "download and cache"):  # it changes meanwhile
            assert check["text"] in output


def test_faults_of_all_kinds_are_shown_at_once(
    ups, in_store, stage_from_store, s3_client, bucket, tiny_data, tmp_path
):
    """Objects, files, cache, memory, device and checkpoint, each with a fault of its own."""
    keys = {"train": "faulty/nan.h5", "val": "faulty/grid.h5", "test": "faulty/test.h5"}
    shutil.copy(tiny_data / "burgers1d_train.h5", tmp_path / "nan.h5")
    with h5py.File(tmp_path / "nan.h5", "r+") as file:
        file["tensor"][7, 0, 0] = np.inf
    with h5py.File(tmp_path / "grid.h5", "w") as file:
        file.attrs["Nu"] = 0.02
        file["tensor"] = np.ones((5, 41, 128), "<f4")
    shutil.copy(tiny_data / "burgers1d_test.h5", tmp_path / "test.h5")
    for key in keys.values():
        s3_client.upload_file(str(tmp_path / key.rpartition("/")[2]), bucket, key)
    sources = {s: [{"key": key, "bucket": bucket}] for s, key in keys.items()}
    good, faulty = in_store(), in_store(data__sources=sources)
    built = ensure(good, stage_from_store(good))
    config_hash = compute_cache_hash(faulty, stage_from_store(faulty))
    cache_dir = good.training.latent_cache_dir
    entry = store.entry_dir(cache_dir, config_hash)
    store.entry_dir(cache_dir, built.config_hash).rename(entry)
    (entry / built.generation / store.MANIFEST_NAME).write_text("{ not JSON")
    s3_client.delete_object(Bucket=bucket, Key=keys["test"])

    code, output, _ = ups(
        "CONFIG",
        *("--set", f"data.sources={json.dumps(sources)}"),
        *("--set", "training.batch_size=1000000000"),
        *("--set", "training.device=cpu", "--set", "training.compile=graph"),
        *("--resume", str(tmp_path / "none.pt")),
        "--json",
    )
    faults = [c for c in json.loads(output)["checks"] if c["status"] == "fault"]
    assert code == 1
    expected = {
        "data train file": "NaN, infinite or fill values in trajectory 7",
        "data val file": "has 128 grid points, expected 256",
        "data test object": "no such key",
        "cache entry": "corrupt metadata",
        "memory training": "free; lower training.batch_size",
        "device compile": "which captures a CUDA graph",
        "checkpoint resume": "no checkpoint",
    }
    texts = {f"{c['group']} {c['name']}": c["text"] for c in faults}
    assert texts.keys() == expected.keys()
    assert [name for name, text in expected.items() if text not in texts[name]] == []


def test_faults_of_the_config_are_shown_at_once_and_the_other_groups_skipped(ups):
    faulty = ("latnt={dim: 8}", "latent.dim=wide", "data.sources.val=[{key: /x.h5}]")
    code, output, _ = ups("CONFIG", *(a for text in faulty for a in ("--set", text)), "--json")
    tree = json.loads(output)
    assert (code, tree["config"]) == (1, "tiny.yaml")
    faults = {c["name"]: c["text"] for c in tree["checks"] if c["status"] == "fault"}
    assert sorted(faults) == ["data.sources.val.0.key", "latent.dim", "latnt"]
    assert faults["latnt"] == "unknown key; did you mean latent?"
    assert faults["latent.dim"].startswith("found 'wide'; input should be a valid integer")
    skipped = {c["group"]: c["text"] for c in tree["checks"] if c["status"] == "skip"}
    why = "not checked: the config has faults: correct them first"
    assert skipped == dict.fromkeys(GROUPS[1:], why)
    _, output, _ = ups("CONFIG", "--set", "latent.tokens=24")
    assert "found 24, expected a divisor of the 256 points" in output


def test_a_full_disk_is_a_fault_and_a_config_that_is_not_there_is_one_fault(ups, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=100_000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    code, output, _ = ups("CONFIG")
    assert (code, "✗ download and cache" in output) == (1, True), output
    code, output, _ = ups("nowhere")
    assert code == 1
    assert re.search("✗ file +no config 'nowhere'", output)
    assert output.count("not checked: there is no config") == len(GROUPS) - 1


@pytest.mark.parametrize(("stream", "fetched"), [("auto", ["test"]), ("off", list(SPLITS))])
def test_files_whose_latents_are_in_the_cache_need_no_room(
    in_store, stage_from_store, stream, fetched
):
    config = in_store(features__stream=stream)
    staged = stage_from_store(config)
    ensure(config, staged)
    for split in SPLITS:
        staged[split][0].path.unlink()
    checks = {(check.group, check.name): check for check in validate(config, "tiny").checks}
    assert checks["cache", "entry"].text.startswith("valid")
    needed = sum(staged[split][0].num_bytes for split in fetched)
    assert checks["disk", "download"].figures["needed_bytes"] == needed


def test_a_setting_that_is_none_is_an_error(ups):
    code, output, errors = ups("CONFIG", "--set", "latent.dim")
    assert (code, output) == (2, "")
    assert "--set': found 'latent.dim', expected KEY=VALUE" in errors
    assert "expected a value in YAML" in ups("CONFIG", "--set", "latent.dim=[")[2]


def test_offline_and_local_files_need_no_store(ups, tiny_data, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    assert ups("CONFIG", "--offline")[0] == 0
    local = ("--set", "data.sources=null", "--set", f"data.root={tiny_data}")
    assert ups("CONFIG", *local, "--sample", "4")[0] == 0
    assert ups("CONFIG")[0] == 1


def test_the_commands_of_the_page_run(store_env, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    for command in commands_run_by(request.node.nodeid):
        result = CliRunner().invoke(app, shlex.split(command)[1:])
        assert result.exit_code == 0, (command, result.output)
