"""Which folders commands look in, from wherever they are called."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from deployments.cli.app import app
from ups.cli import places
from ups.cli.places import load_config_here


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A clone of the project, which the `ups` of these tests is of; work goes on in its `docs`."""
    root = tmp_path / "clone"
    for mark in places.MARKS:
        (root / mark).parent.mkdir(parents=True, exist_ok=True)
        (root / mark).touch()
    (root / "docs").mkdir()
    monkeypatch.setattr(places, "PROJECT_DIR", root)
    monkeypatch.chdir(root / "docs")
    return root


def ups(*arguments):
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, done.output
    return done.stdout, done.stderr


def test_default_folders_are_the_clones_from_any_folder_of_it(clone):
    assert ups("runs", "list") == (f"no runs in {clone}/runs\n", "")
    assert ups("runs", "prune")[0].startswith("removed 0 of 0 runs")
    assert ups("cache", "list") == (f"0 entries, 0 B in {clone}/data/latent_cache\n", "")
    assert ups("cache", "list", "--config", "smoke")[0].endswith(f"in {clone}/data/latent_cache\n")


def test_a_folder_on_the_command_line_is_meant_from_where_one_is(clone):
    (clone / "docs" / "mine").mkdir()
    assert ups("runs", "list", "--dir", "mine")[0].startswith(f"no runs in {clone}/docs/mine")
    assert ups("runs", "list", "--dir", "runs")[0].startswith(f"no runs in {clone}/docs/runs")
    assert ups("cache", "list", "--dir", "mine")[0] == "0 entries, 0 B in mine\n"


def test_relative_folders_of_a_config_are_the_clones_and_overrides_are_not(clone, monkeypatch):
    below = load_config_here("smoke", {"data.root": "here", "latent.dim": 8})
    assert below.runs_dir == clone / "runs"
    assert below.training.latent_cache_dir == clone / "data" / "latent_cache"
    assert (below.data.root, below.latent.dim) == (Path("here"), 8)
    section = load_config_here("smoke", {"training": {"batch_size": 3}})
    assert section.training.latent_cache_dir == Path("data/latent_cache")
    monkeypatch.chdir(clone)
    assert load_config_here("smoke", {}).runs_dir == Path("runs")
    monkeypatch.chdir(clone.parent)
    assert load_config_here("smoke", {}).runs_dir == Path("runs")


def test_outside_of_a_clone_it_is_said_where_the_runs_of_the_project_are(clone, monkeypatch):
    monkeypatch.chdir(clone.parent)
    assert ups("runs", "list") == (f"no runs in {clone.parent}/runs\n", "")
    (clone / "runs").mkdir()
    output, _ = ups("runs", "list")
    assert output.startswith(f"no runs in {clone.parent}/runs; ")
    assert f"`--dir {clone}/runs`" in output


def test_in_the_clone_of_another_environment_it_is_said_whose_this_is(clone, monkeypatch, tmp_path):
    monkeypatch.setattr(places, "PROJECT_DIR", tmp_path / "another")
    errors = ups("runs", "list")[1]
    assert errors.startswith(f"note: this `ups` is that of {tmp_path}/another")
    assert f"in {clone} " in errors
    monkeypatch.chdir(tmp_path)
    assert ups("runs", "list")[1] == ""
