"""Progress: sparse lines in a log, bars on a terminal."""

import logging
import os
import pty
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from ups.cli.console import errors_shown
from ups.progress import logged, progress_shown, sparse_lines


@pytest.fixture
def lines_of():
    """`lines_of(seconds)`: what is said of work of 200 in all, of which one is done each second."""

    def run(seconds, step=1.0):
        lines, now = [], [0.0]
        show = sparse_lines(lines.append, "encoded", "MB", clock=lambda: now[0])
        for done in range(1, seconds + 1):
            now[0] = done * step
            show(done, 200)
        return lines

    return run


def test_a_line_comes_for_another_tenth_and_at_most_every_ten_seconds(lines_of):
    lines = lines_of(200)
    assert lines[0] == "encoded 20 of 200 MB (10%)"
    assert len(lines) == 10
    assert lines[-1] == "encoded 200 of 200 MB (100%)"
    assert len(lines_of(200, step=0.1)) == 2  # of 20 s


def test_the_end_is_said_once_however_little_is_left_before_it(monkeypatch):
    monkeypatch.setenv("UPS_PROGRESS_S", "0")
    lines = []
    show = sparse_lines(lines.append, "encoded", "MB")
    for done in (95, 96, 100, 100):
        show(done, 100)
    assert lines == ["encoded 95 of 100 MB (95%)", "encoded 100 of 100 MB (100%)"]


def test_slow_work_says_something_every_minute_and_fast_work_nothing(lines_of):
    assert lines_of(3, step=25.0) == ["encoded 3 of 200 MB (2%)"]
    assert lines_of(200, step=0.01) == []


def test_progress_goes_into_the_log_from_any_thread(caplog, monkeypatch):
    monkeypatch.setenv("UPS_PROGRESS_S", "0.01")
    caplog.set_level(logging.INFO, "ups")
    show = logged("fetched", "MB", 1e6)
    time.sleep(0.02)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(show, 50_000_000, 100_000_000).result()
    assert caplog.messages == ["fetched 50 of 100 MB (50%)"]


def test_a_terminal_gets_bars_and_log_lines_above_them():
    script = """
        import logging, time, ups.progress
        from ups.cli.console import errors_shown
        ups.progress.BARS_AFTER_S = 0.0
        with errors_shown(), ups.progress.progress_shown() as show:
            update = show("encoded", "trajectories")
            update(1, 4)
            logging.getLogger("ups.test").info("in between")
            update(2, 4)
    """
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stderr=theirs,
        stdout=subprocess.PIPE,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(theirs)
    output = b""
    try:
        while chunk := os.read(ours, 4096):
            output += chunk
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert process.communicate()[0] == b""
    assert process.returncode == 0
    assert b"2 of 4 trajectories" in output
    assert output.count(b"in between") == 1
    assert b"\x1b[" in output


def test_a_line_that_nobody_can_read_ends_nothing(monkeypatch):
    full = open("/dev/full", "w", buffering=1)  # noqa: SIM115 (to close it fails, too)
    monkeypatch.setattr(sys, "stderr", full)
    monkeypatch.setenv("UPS_PROGRESS_S", "1e-9")
    with progress_shown() as show:
        show("fetched", "MB")(1, 2)
    logger = logging.getLogger("ups.x")
    with errors_shown():
        logger.info("a line")
    with suppress(OSError):
        full.close()
