"""`ups data`: what a person with files of their own does before there is a config."""

import json

import h5py
import pytest
from typer.testing import CliRunner

from deployments.cli.app import app
from tests.conftest import TINY_FILE
from tests.proxy import serving_proxy


@pytest.fixture
def ups():
    def run(*arguments):
        done = CliRunner().invoke(app, ["data", *map(str, arguments)], env={"COLUMNS": "200"})
        return done.exit_code, done.stdout, done.stderr

    return run


@pytest.fixture
def bare(tiny_data, tmp_path):
    """A file that lacks ν."""
    path = tmp_path / "mine.h5"
    path.write_bytes((tiny_data / TINY_FILE.format("train")).read_bytes())
    with h5py.File(path, "a") as file:
        del file.attrs["Nu"]
    return path


def test_inspect_shows_a_file_a_folder_and_an_object(ups, tiny_data, bucket, store_env):
    path = tiny_data / TINY_FILE.format("train")
    code, output, errors = ups("inspect", path)
    assert (code, errors) == (0, "")
    assert "20 trajectories × 41 frames × 256 points" in output
    assert "burgers1d, ν = 0.02 by the file" in output
    code, output, _ = ups("inspect", tiny_data)
    assert (code, output.count("256 points")) == (0, 3)
    code, output, _ = ups("inspect", f"s3://{bucket}/burgers1d/{path.name}", "--json")
    (facts,) = json.loads(output)
    assert (code, facts["shape"], facts["digest"]) == (0, [20, 41, 256], "by its manifest")
    code, output, _ = ups("inspect", f"s3://{bucket}/burgers1d/", "--json")
    assert [facts["name"] for facts in json.loads(output)] == [
        TINY_FILE.format(split) for split in ("test", "train", "val")
    ]


def test_inspect_ends_with_1_where_something_is_missing_and_takes_it(ups, bare):
    code, output, errors = ups("inspect", bare)
    assert (code, errors) == (1, "")
    assert output.splitlines()[-1].startswith("✗ neither an attribute Nu or beta nor its name")
    code, output, _ = ups("inspect", bare, "--nu", "0.02")
    assert (code, "burgers1d, ν = 0.02 as given" in output) == (0, True)
    (bare.parent / "page.h5").write_text("<html>")
    code, output, _ = ups("inspect", bare.parent, "--nu", "0.02")
    assert (code, "mine.h5" in output) == (1, True)
    assert output.splitlines()[-1].startswith("✗ page.h5: found 6 bytes that are not HDF5")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.h5"], "error: nowhere.h5: no such file"),
        (["ftp://host/a.h5"], "error: found ftp://host/a.h5, expected s3://BUCKET/KEY"),
        (["hf://me/a.h5"], "error: PLACE: found 'hf://me/a.h5', expected hf://datasets/OWNER/"),
        (["https://me:me@host/a.h5"], "error: PLACE: holds credentials, which would be logged"),
        (["s3:///a.h5"], "error: found s3:///a.h5, expected s3://BUCKET/KEY"),
        (["a.h5", "--nu", "0"], "error: --nu: found 0.0, expected a number above 0"),
        (["a.h5", "--nu", "1", "--beta", "1"], "error: found --nu and --beta, expected the"),
    ],
)
def test_inspect_refuses_in_one_line(ups, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, output, errors = ups("inspect", *arguments)
    assert (code, output, errors.count("\n")) == (1, "", 1)
    assert errors.startswith(message)


def test_inspect_writes_a_config_that_is_valid_and_trains(
    ups, bucket, store_env, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    place = f"s3://{bucket}/burgers1d/"
    code, output, errors = ups("inspect", place, "--config", "mine.yaml")
    assert (code, "wrote mine.yaml; next: `ups validate mine.yaml`" in output) == (0, True), errors
    valid = CliRunner().invoke(app, ["validate", "mine.yaml", "--json"])
    assert (valid.exit_code, json.loads(valid.stdout)["valid"]) == (0, True), valid.stdout
    short = ["--set", "stages.operator.epochs=1", "--set", "stages.operator.max_steps=8"]
    trained = CliRunner().invoke(app, ["train", "mine.yaml", *short])
    assert (trained.exit_code, "test rollout nRMSE" in trained.stdout) == (0, True)
    code, _, errors = ups("inspect", place, "--config", "mine.yaml")
    assert (code, "mine.yaml is there already" in errors) == (1, True)
    assert ups("inspect", place, "--config", "mine.yaml", "--force")[0] == 0


def test_a_file_that_lacks_nu_trains_with_the_config_that_is_written(ups, bare, monkeypatch):
    monkeypatch.chdir(bare.parent)
    assert ups("inspect", bare.name, "--nu", "0.02", "--config", "mine.yaml")[0] == 0
    short = ["--set", "stages.operator.epochs=1", "--set", "stages.operator.max_steps=4"]
    trained = CliRunner().invoke(app, ["train", "mine.yaml", *short])
    assert (trained.exit_code, "test rollout nRMSE" in trained.stdout) == (0, True), trained.output


def test_no_config_is_written_for_what_cannot_be_trained_on(ups, bare, tmp_path):
    path = tmp_path / "mine.yaml"
    code, output, errors = ups("inspect", bare, "--config", path)
    assert (code, "✗ " in output, path.exists()) == (1, True, False)
    assert errors.startswith(f"error: no config is written, as {bare} cannot be trained on: neith")
    code, _, errors = ups("inspect", bare, "--config", tmp_path / "mine.txt")
    assert (code, "expected a file called NAME.yaml" in errors) == (1, True)


def test_make_solves_an_equation_into_a_file_that_inspect_reads(ups, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["-n", "3", "--grid-points", "64", "--frames", "5", "--t-end", "0.4"]
    code, output, errors = ups("make", "burgers1d", "--nu", "0.05", *small)
    assert code == 0, errors
    assert output.startswith("burgers1d_nu0.05.h5: 3 trajectories of burgers1d")
    (facts,) = json.loads(ups("inspect", "burgers1d_nu0.05.h5", "--json")[1])
    assert (facts["shape"], facts["parameter"], facts["dt"]) == ([3, 5, 64], 0.05, 0.1)
    before = (tmp_path / "burgers1d_nu0.05.h5").read_bytes()
    code, _, errors = ups("make", "burgers1d", "--nu", "0.05", *small, "--seed", "1")
    assert (code, "is there already" in errors) == (1, True)
    assert (tmp_path / "burgers1d_nu0.05.h5").read_bytes() == before
    assert ups("make", "burgers1d", "--nu", "0.05", *small, "--seed", "1", "--force")[0] == 0
    assert (tmp_path / "burgers1d_nu0.05.h5").read_bytes() != before


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["heat", "-n", "3"], 2, "found 'heat', expected one of burgers1d, advection1d"),
        (["burgers1d", "--nu", "1"], 2, "Missing option"),
        (["burgers1d", "-n", "3"], 1, "error: burgers1d needs its ν: give --nu VALUE"),
        (["burgers1d", "-n", "3", "--beta", "1"], 1, "found --beta with burgers1d, expected --nu"),
        (["burgers1d", "-n", "3", "--nu", "-1"], 1, "--nu: found -1.0, expected a number above 0"),
        (["burgers1d", "-n", "3", "--nu", "1", "-o", "a.txt"], 1, "expected a file called NAME.h5"),
        (["burgers1d", "-n", "9999999999", "--nu", "1", "-o", "a.h5"], 1, "make fewer"),
    ],
)
def test_make_refuses_in_one_line_and_leaves_nothing(
    ups, tmp_path, monkeypatch, arguments, code, message
):
    monkeypatch.chdir(tmp_path)
    found, _, errors = ups("make", *arguments)
    assert (found, message in " ".join(errors.split())) == (code, True), errors
    assert not list(tmp_path.iterdir())


def test_put_and_get_bring_files_there_and_back(ups, tiny_data, bucket, store_env, tmp_path):
    path = tiny_data / TINY_FILE.format("val")
    place = f"s3://{bucket}/put/"
    code, output, errors = ups("put", path, place)
    assert (code, f"{place}{path.name} 213 KB uploaded, SHA-256" in output) == (0, True), errors
    code, output, _ = ups("put", path, place, "--json")
    (sent,) = json.loads(output)
    assert (code, sent["was_there"]) == (0, True)
    code, output, errors = ups("get", place, tmp_path / "back")
    assert (code, "213 KB downloaded, verified" in output) == (0, True), errors
    assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes()
    assert "was there, verified" in ups("get", f"{place}{path.name}", tmp_path / "back")[1]


def test_the_examples_of_the_help_run_in_their_order(
    examples_that_need, tiny_data, store_env, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "burgers.h5").hardlink_to(tiny_data / TINY_FILE.format("test"))
    for line in examples_that_need("a store").values():
        done = CliRunner().invoke(app, line.split()[1:])
        assert done.exit_code == 0, done.output
    assert (tmp_path / "data" / "mine" / "burgers.h5").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["put", "s3://tiny/a/"], "error: found one place, expected files and s3://BUCKET/DIR/"),
        (["put", "a.h5", "b.h5"], "error: found b.h5, expected s3://BUCKET/KEY"),
        (["put", "nowhere.h5", "s3://tiny/a/"], "error: nowhere.h5: no such file or folder"),
        (["put", "a.h5", "https://host/a.h5"], "error: found https://host/a.h5, expected s3://"),
        (["get", "https://host/"], "error: PLACE: found 'https://host/', expected https://host"),
        (["get", "hf://models/a/b"], "error: PLACE: found 'hf://models/a/b', expected hf://data"),
        (["get", "a.h5"], "error: found a.h5, expected s3://BUCKET/KEY"),
        (["get", "s3://tiny/none.h5"], "error: s3://tiny/none.h5: no such key"),
        (["get", "s3://nowhere/a.h5"], "error: s3://nowhere/a.h5: no such bucket"),
    ],
)
def test_put_and_get_refuse_in_one_line(
    ups, bucket, store_env, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    code, output, errors = ups(*arguments)
    assert (code, output, errors.count("\n")) == (1, "", 1), errors
    assert errors.startswith(message)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["inspect", "get"])
def test_a_bucket_that_may_not_be_listed_is_one_line_and_leaves_nothing(
    ups, bucket, s3, store_env, tmp_path, monkeypatch, command
):
    monkeypatch.chdir(tmp_path)
    with serving_proxy(s3.endpoint_url) as handler:
        handler.proxy.faults.refuse = (403, "AccessDenied", "by a policy")
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", handler.proxy.url)
        code, output, errors = ups(command, f"s3://{bucket}/burgers1d/")
    assert (code, output, errors.count("\n")) == (1, "", 1), errors
    assert "refuses access (AccessDenied" in errors
    assert not list(tmp_path.iterdir())
