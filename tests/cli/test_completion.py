"""What a shell completes after `ups`."""

import os
import subprocess
from uuid import UUID

import pytest
from typer.testing import CliRunner

from deployments.cli.app import app
from deployments.layout import BIN_DIR
from ups.latents.build import ensure
from ups.runs.folder import open_run_dir

SCHEDULED = UUID("0199d3a1-7c40-7a52-9f0e-6f2f5b7e9a10")


@pytest.fixture
def complete(tiny_config, stage_all, tmp_path, monkeypatch):
    """`complete("ups train smo")`: the words offered, in a folder with a run and an entry."""
    monkeypatch.chdir(tmp_path)
    config = tiny_config(training__latent_cache_dir="data/latent_cache", runs_dir="runs")
    entry = ensure(config, stage_all(config))
    open_run_dir(config, "136fabcd")
    open_run_dir(config, SCHEDULED)
    history = tmp_path / "data" / "benchmarks" / "history"
    history.mkdir(parents=True)
    (history / "20260101-ab.json").touch()

    def offered(line):
        env = {
            "_UPS_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(line.split(" ")) - 1),
        }
        done = CliRunner().invoke(app, [], prog_name="ups", env=env)
        assert done.exit_code == 0, done.output
        return done.output.split()

    offered.key = entry.config_hash
    return offered


def test_names_of_commands_configs_keys_runs_and_benchmarks_are_completed(complete):
    key = complete.key
    assert complete("ups cac") == ["cache"]
    assert complete("ups train smo") == ["smoke", "smoke_fno", "smoke_mixed", "smoke_unet"]
    assert complete("ups run -c train_burgers_p") == ["train_burgers_pdebench"]
    for command in ("launch", "onstart"):
        assert complete(f"ups vast {command} --config train_burgers_p") == [
            "train_burgers_pdebench"
        ]
    assert complete("ups train smoke --set latent.d") == ["latent.dim="]
    assert complete("ups train smoke --set stages.operator.optimizer.") == [
        "stages.operator.optimizer.betas=",
        "stages.operator.optimizer.lr=",
        "stages.operator.optimizer.weight_decay=",
    ]
    assert complete(f"ups cache show {key[:2]}") == [key]
    assert complete(f"ups cache show --dir elsewhere {key[:2]}") == []
    assert complete("ups runs compare 136fabcd 136") == ["136fabcd"]
    assert complete("ups runs show --dir elsewhere 136") == []
    assert complete("ups runs show ") == ["136fabcd", "5b7e9a10"]
    assert complete("ups runs show 5b") == ["5b7e9a10"]
    assert complete("ups runs show 0199d3a17") == [SCHEDULED.hex]
    assert complete("ups runs show 0199d3a1-") == [str(SCHEDULED)]
    assert complete("ups benchmark -s no-r") == ["no-reuse_cache"]
    assert complete("ups benchmark -s cold,wa") == ["cold,warm"]
    assert complete("ups report 2026") == ["20260101-ab"]


def test_bash_completes_with_the_script_that_ups_installs(tmp_path):
    script = """
        ups --install-completion >&2 || exit 3
        source ~/.bashrc
        COMP_WORDS=(ups train smo); COMP_CWORD=2
        _ups_completion ups
        echo "completed: ${COMPREPLY[*]}"
    """
    path = f"{BIN_DIR}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "HOME": str(tmp_path), "PATH": path}
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True)
    assert done.stdout == "completed: smoke smoke_fno smoke_mixed smoke_unet\n", done.stderr
