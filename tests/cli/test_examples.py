"""Every command has an example in its help, and every example runs: here, or where it can.

`NEEDS` in `tests/live.py` says which examples need more than a folder; the tests of what they need
run all of those. Of the commands in the pages those that need a folder only run here, too.
"""

import re
import shlex
import shutil

import h5py
import pytest
from typer.testing import CliRunner

from deployments.cli import clean, report
from deployments.cli.app import app
from tests.documented import commands_run_by
from ups.config import dump_config
from ups.latents.build import ensure
from ups.runs.folder import open_run_dir
from ups.runs.record import recorded
from ups.startup.judge.history import History
from ups.startup.measure.records import BenchmarkRecord

RECORD = BenchmarkRecord(
    id="b1", started_at=1e9, machine_id="m", machine={}, versions={}, commit="abc", settings={}
)


def test_the_help_of_every_command_has_an_example_of_it_that_is_accepted(commands):
    for name, command in commands.items():
        done = CliRunner().invoke(app, [*name.split()[1:], "--help"], terminal_width=200)
        (shown,) = re.findall(r"Example: (ups .+)", done.output)
        assert command.epilog == f"Example: {shown}"
        assert shown.startswith(name)
        command.make_context(name, shlex.split(shown)[len(name.split()) :])


@pytest.fixture
def workplace(tiny_config, tiny_data, stage_all, saved, tmp_path, monkeypatch):
    """A folder with what the examples name; returns what stands there for their names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UPS_STACK_DIR", str(tmp_path / ".stack"))
    for module in (clean, report):
        monkeypatch.setattr(module, "PROJECT_DIR", tmp_path)
    config = tiny_config(training__latent_cache_dir="data/latent_cache", runs_dir="runs")
    (tmp_path / "tiny.yaml").write_text(dump_config(config))
    saved(config)
    (tmp_path / "burgers.h5").hardlink_to(tiny_data / "burgers1d_test.h5")
    keys = []
    for dim in (8, 4):
        other = tiny_config(training__latent_cache_dir="data/latent_cache", latent__dim=dim)
        keys.append(ensure(other, stage_all(other)).config_hash)
    for run_id in ("136ff0b8", "24fbcaac"):
        with recorded(open_run_dir(config, run_id)):
            pass
    for record in (RECORD, RECORD.model_copy(update={"id": "b2"})):
        History(tmp_path / "data" / "benchmarks").save(record)
    return {"smoke": "tiny.yaml", "3fa9": keys[0], "b07c": keys[1]}


def test_every_example_that_needs_no_more_than_a_folder_runs(workplace, examples_that_need):
    found = examples_that_need(None)
    assert len(found) > 10
    for name in sorted(found, key=lambda name: name == "ups cache rm"):  # what removes comes last
        words = [workplace.get(word, word) for word in shlex.split(found[name])[1:]]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, f"{name}\n{done.output}"
        assert done.stdout.strip(), name


def test_every_command_of_the_pages_that_needs_no_more_than_a_folder_runs(
    workplace, request, tiny_data
):
    shutil.copy(tiny_data / "burgers1d_test.h5", "mine.h5")
    with h5py.File("mine.h5", "a") as file:
        del file.attrs["Nu"]
    workplace |= {"256": "2", "64": "2"}  # trajectories
    benchmarks = iter(("b1", "b2"))
    for line in commands_run_by(request.node.nodeid):
        words = shlex.split(line.replace("/path/of/the/folder", str(tiny_data)))[1:]
        words = [next(benchmarks) if word == "ID" else word for word in words]
        done = CliRunner().invoke(app, [workplace.get(word, word) for word in words])
        assert done.exit_code == 0, f"{line}\n{done.output}"
        assert done.stdout.strip(), line
