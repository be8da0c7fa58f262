"""What keeps a stack from starting, by the real command line; `test_runs` has one that runs."""

import os
import socket
import subprocess
import sys

import pytest

from deployments.layout import PROJECT_DIR, Stack


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def ups(tmp_path, monkeypatch):
    """Runs `ups …` on a stack of its own, which is stopped at the end."""
    monkeypatch.setenv("UPS_STACK_DIR", str(tmp_path / ".stack"))
    env = {**os.environ, "UPS_PREFECT_PORT": str(free_port()), "UPS_S3_PORT": str(free_port())}

    def call(*arguments, **changes):
        command = [sys.executable, "-m", "deployments.cli", *arguments]
        done = subprocess.run(
            command, env=env | changes, cwd=PROJECT_DIR, capture_output=True, text=True
        )
        return done.returncode, done.stdout + done.stderr

    yield call
    call("down")


def test_a_busy_port_stops_up_before_anything_is_started(ups):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, output = ups("up", UPS_S3_PORT=str(port))
    assert code == 1
    assert f"port {port} on 127.0.0.1, wanted for the object store, is taken" in output
    assert not list(Stack.find().folder.glob("processes/*.json"))


def test_a_part_that_dies_while_it_starts_is_reported_with_its_last_words(ups):
    code, output = ups("up", RCLONE_TRANSFERS="nonsense")
    assert code == 1
    assert "object-store ended while it was starting" in output
    assert "nonsense" in output


def test_run_refuses_a_bad_config_before_anything_is_started(ups):
    code, output = ups("run", "-p", 'overrides={"latent.tokens": 7}')
    assert code == 1
    assert "latent.tokens: found 7" in output
    assert not Stack.find().folder.exists()
