"""`ups train` as a process of its own, with other commands beside it."""

import signal
import subprocess
import sys

import pytest

from deployments.layout import PROJECT_DIR
from tests.live import wait_until
from ups.config import dump_config
from ups.latents.build import ensure
from ups.latents.entries import entries
from ups.runs.breakdown import STOPPED
from ups.runs.index import read_run
from ups.runs.metrics import read_metrics

NUM_EPOCHS = 10_000  # more than a test waits for
UPS = [sys.executable, "-m", "deployments.cli.app"]


@pytest.fixture
def training(tiny_config, tmp_path):
    """`ups train` on a memory map of its entry, past its second epoch; and its run's folder."""
    config = tiny_config(features__preload="disk", stages__operator__epochs=NUM_EPOCHS)
    path = tmp_path / "tiny.yaml"
    path.write_text(dump_config(config))
    command = [*UPS, "train", path, "--run-id", "mine"]
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(command, cwd=PROJECT_DIR, stdout=output, stderr=output)
    try:
        wait_until(lambda: process.poll() is not None or len(_epochs(tmp_path)) > 1, 60, 0.05)
        assert process.poll() is None, (tmp_path / "output").read_text()
        yield process, next((tmp_path / "runs").glob("*-mine"))
    finally:
        process.kill()
        process.wait()


def _epochs(folder):
    return [row for run in (folder / "runs").glob("*-mine") for row in read_metrics(run).epochs]


def test_prune_and_rm_leave_what_a_training_reads_and_take_it_afterwards(
    tiny_config, stage_all, ups_on, tmp_path, request
):
    other = tiny_config(latent__dim=4)
    ensure(other, stage_all(other))
    cache_dir, ups = other.training.latent_cache_dir, ups_on(other)
    process, _ = request.getfixturevalue("training")
    (held,) = [entry for entry in entries(cache_dir) if entry.in_use]
    files = sorted(held.directory.rglob("*"))

    prune = ("cache", "prune", "--max-size", "0B", "--older-than", "0s", "--dir", str(cache_dir))
    code, output, errors = ups(*prune)
    assert code == 0, errors
    assert "removed: 1 entry" in output
    assert "1 in use" in output
    code, _, errors = ups("cache", "rm", held.config_hash, "--dir", str(cache_dir))
    assert code == 1
    assert f"error: {held.config_hash}: in use by a running job, not removed" in errors
    assert sorted(held.directory.rglob("*")) == files

    before = len(_epochs(tmp_path))
    wait_until(lambda: process.poll() is not None or len(_epochs(tmp_path)) > before + 1, 60, 0.05)
    assert process.poll() is None, (tmp_path / "output").read_text()  # it reads on
    process.terminate()
    assert process.wait(30) == 143
    code, output, errors = ups(*prune)
    assert (code, "removed: 1 entry" in output) == (0, True), errors
    assert entries(cache_dir) == []


def test_a_training_that_is_stopped_has_its_startup_from_the_first_step_on(training):
    process, run_dir = training
    ttfs_s = read_metrics(run_dir).summary["startup/ttfs_s"]
    going_on = read_run(run_dir)
    assert going_on.summary().state == "running"
    assert going_on.summary().ttfs_s == going_on.breakdown.ttfs_s == ttfs_s > 0

    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    stopped = read_run(run_dir)
    assert stopped.summary().state == "stopped"
    assert 2 <= stopped.summary().num_epochs < NUM_EPOCHS
    assert stopped.metrics["startup/ttfs_s"] == ttfs_s
    assert stopped.breakdown.failed == STOPPED
    assert stopped.breakdown.phase_seconds["first step"] > 0
    assert (run_dir / "gantt.png").exists()


def test_train_in_two_ranks_says_when_they_were_there(tiny_config, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(dump_config(tiny_config(stages__operator__epochs=2)))
    command = [*UPS, "train", path, "--set", "training.ranks=2"]
    done = subprocess.run(command, cwd=PROJECT_DIR, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "first optimizer step" in done.stdout
    (run_dir,) = (tmp_path / "runs").glob("2*")
    run = read_run(run_dir)
    assert run.breakdown.waited_for.keys() >= {"ranks", "rendezvous", "first step"}
    assert run.summary().num_epochs == 2
    log = (run_dir / "run.log").read_text()
    assert "epoch 2/2: train loss" in log
    assert "scoring in 2 ranks" in log
    assert "test/nrmse_rollout" in run.metrics
    assert '"epoch 2"' in (run_dir / "trace.json").read_text()
