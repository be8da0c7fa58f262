import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest

from deployments.processes import Processes
from tests.live import wait_until
from ups.files import write_json

SLEEP = "import time; time.sleep(60)"
DEAF = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True)\n" + SLEEP
PARENT = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}]).wait()"


@pytest.fixture
def processes(tmp_path):
    started = Processes(tmp_path / "processes", tmp_path / "logs")
    yield started
    for name in list(started._children):
        started.stop(name, grace_s=0.1)


def start(processes, name, code, **kwargs):
    command = [sys.executable, "-c", code]
    return processes.start(name, command, env=os.environ, cwd=processes.folder.parent, **kwargs)


def test_a_later_command_finds_and_stops_what_an_earlier_one_started(processes):
    record = start(processes, "a", SLEEP)
    later = Processes(processes.folder, processes.log_dir)
    assert later.running("a").pid == record.pid
    assert later.stop("a") == "stopped"
    assert later.running("a") is None
    assert later.stop("a") is None


def test_a_stranger_with_a_reused_pid_is_not_stopped(processes):
    stranger = subprocess.Popen([sys.executable, "-c", SLEEP])
    try:
        record = start(processes, "a", SLEEP)
        path = processes.folder / "a.json"
        forged = replace(record, pid=stranger.pid, created=record.created - 60)
        write_json(path, {key: getattr(forged, key) for key in forged.__slots__})
        later = Processes(processes.folder, processes.log_dir)
        assert later.running("a") is None
        assert later.stop("a") is None
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()
        processes.stop("a")


def test_a_process_that_ignores_sigterm_is_killed(processes):
    record = start(processes, "deaf", DEAF)
    wait_until(lambda: "deaf" in processes.log_tail("deaf"))
    assert processes.stop("deaf", grace_s=0.3) == "killed"
    assert not psutil.pid_exists(record.pid)


def test_children_are_stopped_with_their_parent(processes):
    record = start(processes, "parent", PARENT)
    parent = psutil.Process(record.pid)
    wait_until(parent.children)
    [child] = parent.children()
    processes.stop("parent")
    assert not child.is_running()


def test_a_process_that_ended_is_not_running_and_leaves_its_last_words(processes):
    start(processes, "a", "import sys; sys.exit('no such table')")
    wait_until(lambda: processes.running("a") is None)
    assert processes.log_tail("a") == "no such table"


def test_a_process_that_said_it_ends_is_seen_to(processes):
    start(processes, "a", f"from deployments.processes import say_ending; say_ending(); {SLEEP}")
    wait_until(lambda: processes.is_ending("a"))
    assert processes.running("a")
    processes.stop("a")
    start(processes, "a", SLEEP)
    assert not processes.is_ending("a")


def test_a_gated_process_waits_until_it_is_released(processes):
    start(processes, "a", "print(input(), flush=True)", gated=1)
    time.sleep(0.3)
    assert processes.running("a")
    assert processes.log_tail("a") == ""
    processes.release("a")
    wait_until(lambda: processes.exit_code("a") == 0)
    assert processes.log_tail("a") == "go"


def test_a_started_process_answers_ctrl_c_even_if_its_starter_ignores_it(processes):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        code = "import signal; print(signal.getsignal(2) is signal.default_int_handler)"
        start(processes, "a", code)
        wait_until(lambda: processes.exit_code("a") == 0)
    finally:
        signal.signal(signal.SIGINT, before)
    assert processes.log_tail("a") == "True"


def test_the_log_before_the_last_start_is_kept(processes):
    for word in ("first", "second"):
        start(processes, "a", f"print({word!r})")
        wait_until(lambda: processes.exit_code("a") == 0)
        processes.stop("a")
    assert processes.log_tail("a") == "second"
    assert (processes.log_dir / "a.log.1").read_text() == "first\n"
