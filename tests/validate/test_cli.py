"""`ups validate`, as typed: on a real store, real files and a cache that was really built."""

import json
import re
import shlex
import shutil

import h5py
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from deployments.cli import app
from deployments.layout import PROJECT_DIR
from ups.latents import store
from ups.latents.build import ensure
from ups.validate.check import GROUPS


@pytest.fixture
def ups(in_store, tmp_path):
    """`ups(*arguments)`: exit code, output and errors; CONFIG stands for the tiny config's path."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(in_store().config.model_dump(mode="json")))

    def call(*arguments):
        given = [str(path) if argument == "CONFIG" else argument for argument in arguments]
        result = CliRunner().invoke(app, ["validate", *given, "--benchmarks", str(tmp_path)])
        return result.exit_code, result.stdout, result.stderr

    return call


def test_a_valid_config_ends_with_exit_code_0_and_a_line_for_each_check(ups):
    code, output, errors = ups("CONFIG")
    assert (code, errors) == (0, "")
    headings = [line for line in output.splitlines() if line in GROUPS]
    assert headings == list(GROUPS)
    assert re.search(r"✓ train object +s3://checked/tiny/burgers1d_train.h5: \d+ KB", output)
    assert output.splitlines()[-1].startswith("tiny.yaml: valid; 0 warnings, ")


def test_json_has_the_same_checks(ups):
    _, output, _ = ups("CONFIG", "--json")
    tree = json.loads(output)
    assert tree["valid"] is True
    assert {check["group"] for check in tree["checks"]} == set(GROUPS)
    _, text, _ = ups("CONFIG")
    for check in tree["checks"]:
        if check["name"] not in ("RAM", "room", "download and cache"):  # it changes meanwhile
            assert check["text"] in text


def test_faults_of_all_kinds_are_shown_at_once(
    ups, in_store, stage_from_store, s3_client, bucket, tiny_data, tmp_path
):
    """A config, its objects, files, cache and checkpoint, each with a fault of its own."""
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
    good = in_store()
    built = ensure(good.config, stage_from_store(good.config))
    entry = store.entry_dir(good.config.training.latent_cache_dir, built.config_hash)
    (entry / built.generation / store.MANIFEST_NAME).write_text("{ not JSON")
    stage_from_store(in_store(data__sources=sources).config)
    s3_client.delete_object(Bucket=bucket, Key=keys["test"])

    code, output, _ = ups(
        "CONFIG",
        *("--set", f"data.sources={json.dumps(sources)}"),
        *("--set", "latnt={dim: 8}"),
        *("--set", "latent.dim=wide"),
        *("--set", "latent.tokens=24"),
        *("--set", "training.batch_size=1000000000"),
        *("--set", "training.device=cpu", "--set", "training.compile=graph"),
        *("--resume", str(tmp_path / "none.pt")),
        "--json",
    )
    faults = [c for c in json.loads(output)["checks"] if c["status"] == "fault"]
    assert code == 1
    assert {(c["group"], c["name"]): c["text"] for c in faults}.keys() == {
        ("config", "latnt"),
        ("config", "latent.dim"),
        ("config", "latent.tokens"),
        ("data", "train file"),
        ("data", "val file"),
        ("data", "test object"),
        ("cache", "other entry"),
        ("memory", "training"),
        ("device", "compile"),
        ("checkpoint", "resume"),
    }
    text = " ".join(c["text"] for c in faults)
    for part in (
        "unknown key; did you mean latent?",
        "found 'wide'; input should be a valid integer",
        "found 24, expected a divisor of data.grid_points (256)",
        "NaN or infinite values in trajectory 7",
        "has 128 grid points, expected 256",
        "no such key",
        "corrupt metadata",
        "free; lower training.batch_size",
        "which captures a CUDA graph",
        "no checkpoint",
    ):
        assert part in text


def test_a_full_disk_is_a_fault(ups, in_store, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=100_000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    code, output, _ = ups("CONFIG")
    assert code == 1
    assert "✗ download and cache" in output


def test_a_config_that_is_not_there_is_one_fault(ups):
    code, output, _ = ups("nowhere")
    assert code == 1
    assert "✗ file" in output
    assert "no config 'nowhere'" in output
    assert output.count("not checked: there is no config") == len(GROUPS) - 1


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


README = (PROJECT_DIR / "README.md").read_text()
EXAMPLES = re.findall(r"^ups (validate .*)$", README, re.M)


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_readmes_examples_run(example, store_env, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, shlex.split(example))
    assert result.exit_code == 0, result.output


def test_there_are_examples_and_the_help_has_one():
    assert len(EXAMPLES) >= 3
    result = CliRunner().invoke(app, ["validate", "--help"])
    assert "Example: ups validate smoke" in result.output
