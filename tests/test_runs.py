"""`run.json` and `run.log` of what happens in a run, however it ends."""

import json
import logging
import signal
import subprocess
import sys
import time

import pytest

from ups.errors import ConfigError, Interrupted
from ups.runs import open_run_dir, parse_folder_name, read_info, recorded

log = logging.getLogger("ups.test")


@pytest.fixture
def run_dir(tiny_config):
    return open_run_dir(tiny_config(), "abcd")


def test_a_run_records_what_it_is_and_that_it_completed(run_dir):
    before = time.time()
    with recorded(run_dir, command="ups train smoke", flow_run_id="abcd-12"):
        assert read_info(run_dir).state is None
    info = read_info(run_dir)
    assert (info.id, info.name, info.attempt) == ("abcd", "smoke", 1)
    assert (info.command, info.flow_run_id, info.deployment) == ("ups train smoke", "abcd-12", None)
    assert before <= info.started_at <= info.ended_at <= time.time()
    assert (info.state, info.error) == ("completed", None)
    assert info.commit
    assert info.versions["Python"] == sys.version.split()[0]
    assert {"processor", "cores", "RAM", "disk", "GPU"} <= info.machine.keys()


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (ConfigError("latent.dim: found 0"), "failed"),
        (Interrupted("training was stopped"), "stopped"),
        (KeyboardInterrupt("by hand"), "stopped"),
        (SystemExit(1), "stopped"),
    ],
)
def test_how_a_run_ended_stands_in_its_record_and_its_log(run_dir, error, state):
    with pytest.raises(type(error), match=str(error)), recorded(run_dir):
        raise error
    info = read_info(run_dir)
    assert info.state == state
    assert info.error.startswith(type(error).__name__)
    assert str(error) in info.error
    text = (run_dir / "run.log").read_text()
    assert f"ERROR ups.runs: {state}" in text
    assert "Traceback" in text


def test_the_log_holds_the_lines_of_the_run_and_a_retry_appends(run_dir):
    log.info("before")
    for line in ("first try", "second try"):
        with recorded(run_dir):
            log.info(line)
    log.info("after")
    lines = (run_dir / "run.log").read_text().splitlines()
    assert [line.rsplit("INFO ups.test: ", 1)[1] for line in lines] == ["first try", "second try"]
    assert logging.getLogger("ups").handlers == []
    assert read_info(run_dir).attempt == 2


def test_a_retry_after_a_failure_is_a_run_that_goes_on_and_keeps_its_start(run_dir):
    with pytest.raises(ConfigError, match="no"), recorded(run_dir):
        raise ConfigError("no")
    failed = read_info(run_dir)
    with recorded(run_dir):
        again = read_info(run_dir)
        assert (again.state, again.error, again.attempt) == (None, None, 2)
        assert again.started_at == failed.started_at
    assert read_info(run_dir).state == "completed"


def test_a_killed_process_leaves_all_but_its_end(run_dir):
    script = (
        "import os, signal, sys, time\nfrom pathlib import Path\n"
        "from ups.runs import read_info, recorded\nfolder = Path(sys.argv[1])\n"
        "with recorded(folder):\n"
        "    while read_info(folder).commit is None: time.sleep(0.01)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, run_dir], timeout=60)
    assert done.returncode == -signal.SIGKILL
    info = read_info(run_dir)
    assert info.state is None
    assert info.commit
    assert info.versions


def test_a_record_of_another_form_is_written_anew(run_dir, caplog):
    (run_dir / "run.json").write_text(json.dumps({"id": 3}))
    with recorded(run_dir):
        pass
    assert read_info(run_dir).attempt == 1
    assert "run.json is left out" in caplog.text


@pytest.mark.parametrize("name", ["smoke", "a-b.c_d"])
def test_a_folder_name_falls_into_its_parts(tiny_config, name):
    folder = open_run_dir(tiny_config(name=name), "x_1.y")
    parts = parse_folder_name(folder.name)
    assert parts[1:] == (name, "x_1.y")
    assert parse_folder_name(f"{name}-x") is None
