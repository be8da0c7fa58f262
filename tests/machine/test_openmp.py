"""How long torch's threads spin, as OpenMP itself says it when torch loads it."""

import os
import re
import subprocess
import sys

import pytest

from deployments import worker
from deployments.layout import BIN_DIR, PROJECT_DIR

SPINS = r"GOMP_SPINCOUNT = '(\d+)'"
BY_USER = [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, "0")]


@pytest.fixture
def said():
    """`said(command, env)`: the spin count of a program that imports torch."""

    def run(command, env):
        with subprocess.Popen(
            command,
            cwd=PROJECT_DIR,
            env={**os.environ, "OMP_DISPLAY_ENV": "VERBOSE", **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            found = filter(None, (re.search(SPINS, line) for line in process.stderr))
            count = next(found)[1]
            process.kill()  # the rest of it takes seconds
        return count

    return run


@pytest.fixture
def without(monkeypatch):
    """Neither is set; whatever a test's code sets is undone."""
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("without")
@pytest.mark.parametrize(("env", "expected"), BY_USER)
def test_threads_of_a_command_spin_briefly_or_as_the_user_wants(said, env, expected):
    command = [BIN_DIR / "ups", "predict", "/nowhere.pt", "x.h5", "-o", "y.h5"]
    assert said(command, env) == expected


@pytest.mark.usefixtures("without")
@pytest.mark.parametrize(("env", "expected"), BY_USER)
def test_so_do_those_of_the_runs_of_a_worker_and_of_its_kept_process(
    said, monkeypatch, tmp_path, env, expected
):
    kept = [sys.executable, "-m", "deployments.zygote", str(tmp_path / "socket")]
    fresh = [sys.executable, "-c", "import torch"]
    counts = []

    async def work(*_):  # both inherit the same; the kept one takes seconds, so once is enough
        counts.extend(said(command, {}) for command in ([fresh] if env else [fresh, kept]))

    monkeypatch.setattr(worker, "work", work)
    monkeypatch.setattr(sys, "argv", ["worker", "local"])
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    worker.main()
    assert set(counts) == {expected}
