"""Trackers beside a run: whatever becomes of them, the run goes on and ends."""

import logging
import signal
import socket
import subprocess
import sys
import time

import pytest

import ups.tracking
from tests.live import wait_until
from ups.errors import Interrupted
from ups.runs.folder import open_run_dir
from ups.runs.metrics import add_to_summary, write_rows
from ups.tracking import tracked

KEY = "5ec2e7" * 6 + "abcd"  # of the form that Weights & Biases gives out
ROWS = [
    {"epoch": e, "step": 4 * e, "train/loss": 1 / e, "time": 1e9 + e, "startup/x": 0.5}
    for e in (1, 2, 3)
]


@pytest.fixture
def start(tiny_config):
    """`start(wandb=…, tensorboard=…)`: a config with these trackers, and a new run's folder."""

    def make(**on):
        enabled = {f"logging__{name}__enabled": is_on for name, is_on in on.items()}
        config = tiny_config(**enabled)
        return config, open_run_dir(config, "abcd")

    return make


@pytest.fixture
def instead_of_wandb(tmp_path, monkeypatch):
    """`instead_of_wandb(code)`: a package that a tracker imports in the place of the real one."""

    def put(code):
        (tmp_path / "site").mkdir()
        (tmp_path / "site" / "wandb.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))

    return put


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("code", "end_s", "said"),
    [
        ("raise ImportError('no such symbol')", 30, "exit code 1, its last words: ImportError: no"),
        ("import os; print('Segmentation fault', flush=True); os._exit(139)", 30,
         "exit code 139, its last words: Segmentation fault"),
        ("import time; time.sleep(600)", 0.3, "not done 0 s after the run, and ended"),
        (None, 30, "the package wandb is missing: `pip install 'ups-train[wandb]'`"),
    ],
)  # fmt: skip
def test_a_tracker_that_fails_or_is_missing_is_one_warning_and_holds_nothing_up(
    start, instead_of_wandb, caplog, monkeypatch, code, end_s, said
):
    monkeypatch.setitem(ups.tracking.END_S, "completed", end_s)
    if code is None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    else:
        instead_of_wandb(code)
    config, run_dir = start(wandb=True)
    with tracked(config, run_dir) as trackers:
        began = time.monotonic()
        trackers.start()
        assert time.monotonic() - began < 0.5  # the import goes on elsewhere
        write_rows(run_dir, ROWS)
    (warning,) = warnings(caplog)
    assert warning.startswith("logging.wandb: ")
    assert said in warning
    assert "metrics.jsonl in its folder has everything" in warning


@pytest.mark.parametrize("enabled", [False, True])
def test_without_a_tracker_or_when_stopped_before_the_first_step_nothing_is_started(
    start, enabled, monkeypatch
):
    def refuse(*_, **__):
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    config, run_dir = start(wandb=enabled)
    if not enabled:
        with tracked(config, run_dir) as trackers:
            trackers.start()
    else:
        with pytest.raises(Interrupted), tracked(config, run_dir):
            raise Interrupted("by a signal")


def test_a_server_that_does_not_answer_costs_the_training_nothing_and_the_run_is_kept_offline(
    start, no_wandb_key, read_wandb, monkeypatch, caplog
):
    caplog.set_level(logging.INFO, "ups")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connects, and never says a word
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        for name, value in {"BASE_URL": url, "API_KEY": KEY, "INIT_TIMEOUT": "1"}.items():
            monkeypatch.setenv(f"WANDB_{name}", value)
        config, run_dir = start(wandb=True)
        with tracked(config, run_dir) as trackers:
            began = time.monotonic()
            trackers.start()
            assert time.monotonic() - began < 0.5
            write_rows(run_dir, ROWS)
            add_to_summary(run_dir, {"startup/ttfs_s": 1.5})
    assert warnings(caplog) == []
    assert "wandb: no start online, so offline: " in caplog.text
    history = read_wandb(run_dir).history
    said = [path.read_text() for path in sorted(run_dir.glob("wandb/*/logs/*.log"))]
    losses = [row["train/loss"] for row in history if "train/loss" in row]
    assert losses == [row["train/loss"] for row in ROWS], (history, "\n".join(said))
    assert history[-1]["startup/ttfs_s"] == 1.5
    for path in run_dir.rglob("*"):
        assert not (path.is_file() and KEY.encode() in path.read_bytes()), path


def test_wandb_writes_nothing_of_its_own_while_the_run_is_silent(
    start, no_wandb_key, read_wandb, monkeypatch
):
    monkeypatch.setenv("WANDB_X_STATS_SAMPLING_INTERVAL", "0.1")
    config, run_dir = start(wandb=True)
    with tracked(config, run_dir) as trackers:
        trackers.start()
        wait_until(lambda: list(run_dir.glob("wandb/offline-run-*/*.wandb")), 30)
        time.sleep(1)
    assert read_wandb(run_dir).num_stats == 0


def test_the_tracker_of_a_killed_run_finishes_by_itself(start, read_tensorboard):
    config, run_dir = start(tensorboard=True)
    write_rows(run_dir, ROWS)
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom ups.config import load_config\n"
        "from ups.tracking import tracked\nfolder = Path(sys.argv[1])\n"
        "with tracked(load_config(folder / 'config.yaml'), folder) as trackers:\n"
        "    trackers.start()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, run_dir], timeout=60)
    assert done.returncode == -signal.SIGKILL

    def state():
        if not (run_dir / "tensorboard").is_dir():
            return None
        events = read_tensorboard(run_dir)
        if "state" not in events.Tags()["tensors"]:
            return None
        return events.Tensors("state")[0].tensor_proto.string_val[0].decode()

    wait_until(lambda: state() == "killed", 30)


ELSEWHERE = {"WANDB_BASE_URL": "https://wandb.example"}


@pytest.mark.parametrize(
    ("env", "netrc", "expected"),
    [
        ({}, "", False),
        ({"WANDB_API_KEY": KEY}, "", True),
        ({}, f"machine api.wandb.ai login user password {KEY}", True),
        ({}, f"machine elsewhere login user password {KEY}", False),
        (ELSEWHERE, f"machine wandb.example login user password {KEY}", True),
        (ELSEWHERE, f"machine api.wandb.ai login user password {KEY}", False),
        ({}, "nonsense {", False),
    ],
)
def test_a_key_comes_from_the_environment_or_from_where_wandb_login_puts_it(
    no_wandb_key, monkeypatch, tmp_path, env, netrc, expected
):
    from ups.tracking.wandb import has_key

    for name, value in env.items():
        monkeypatch.setenv(name, value)
    if netrc:
        path = tmp_path / "netrc"
        path.write_text(netrc)
        path.chmod(0o600)
        monkeypatch.setenv("NETRC", str(path))
    assert has_key() is expected
