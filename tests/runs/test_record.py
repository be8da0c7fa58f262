"""`run.json` and `run.log` of what happens in a run, however it ends."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import pytest

from ups.errors import ConfigError, Interrupted, RunError
from ups.files import exclusive_lock, is_locked, lock_now
from ups.runs.folder import find_run_dir, has_to_build, let_go, open_run_dir, parse_folder_name
from ups.runs.record import recorded
from ups.runs.stored import RunInfo

log = logging.getLogger("ups.test")

# As the scheduler makes them: the first 12 digits are the time in ms.
ONE = UUID("0199d3a1-7c40-7a52-9f0e-6f2f5b7e9a10")
SAME_8 = UUID("0199d3a1-7c41-7b18-8e0e-0c4e6a1d2b30")
SAME_12 = UUID("0199d3a1-7c40-7c3f-b21d-52d0e97f4c11")


@pytest.fixture
def run_dir(tiny_config):
    return open_run_dir(tiny_config(), "abcd")


def test_a_run_records_what_it_is_and_that_it_completed(run_dir):
    before = time.time()
    with recorded(run_dir, command="ups train smoke", flow_run_id="abcd-12"):
        assert RunInfo.load(run_dir).state is None
    info = RunInfo.load(run_dir)
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
def test_how_a_run_ended_stands_in_record_and_log_and_a_retry_goes_on(run_dir, error, state):
    with pytest.raises(type(error), match=str(error)), recorded(run_dir):
        raise error
    info = RunInfo.load(run_dir)
    assert info.state == state
    assert info.error.startswith(type(error).__name__)
    assert str(error) in info.error
    text = (run_dir / "run.log").read_text()
    assert f"ERROR ups.runs.record: {state}" in text
    assert "Traceback" in text
    with recorded(run_dir):
        again = RunInfo.load(run_dir)
        assert (again.state, again.error, again.attempt) == (None, None, 2)
        assert again.started_at == info.started_at
    assert RunInfo.load(run_dir).state == "completed"


def test_the_log_holds_the_lines_of_the_run_and_a_retry_appends(run_dir):
    log.info("before")
    for line in ("first try", "second try"):
        with recorded(run_dir):
            log.info(line)
    log.info("after")
    lines = (run_dir / "run.log").read_text().splitlines()
    assert [line.rsplit("INFO ups.test: ", 1)[1] for line in lines] == ["first try", "second try"]
    assert logging.getLogger("ups").handlers == []
    assert RunInfo.load(run_dir).attempt == 2


def test_a_killed_process_leaves_all_but_its_end(run_dir):
    script = (
        "import os, signal, sys, time\nfrom pathlib import Path\n"
        "from ups.runs.record import recorded\nfrom ups.runs.stored import RunInfo\n"
        "folder = Path(sys.argv[1])\n"
        "with recorded(folder):\n"
        "    while RunInfo.load(folder).commit is None: time.sleep(0.01)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, run_dir], timeout=60)
    assert done.returncode == -signal.SIGKILL
    info = RunInfo.load(run_dir)
    assert info.state is None
    assert info.commit
    assert info.versions


def test_a_record_of_another_form_is_written_anew(run_dir, caplog):
    (run_dir / "run.json").write_text(json.dumps({"id": 3}))
    with recorded(run_dir):
        pass
    assert RunInfo.load(run_dir).attempt == 1
    assert "run.json is left out" in caplog.text


@pytest.mark.parametrize("name", ["smoke", "a-b.c_d"])
def test_a_folder_name_falls_into_its_parts(tiny_config, name):
    folder = open_run_dir(tiny_config(name=name), "x_1.y")
    parts = parse_folder_name(folder.name)
    assert parts[1:] == (name, "x_1.y")
    assert parse_folder_name(f"{name}-x") is None


def run_of(config, flow_run_id):
    """A flow run that came to its end, in its folder."""
    folder = open_run_dir(config, flow_run_id)
    with recorded(folder, flow_run_id=str(flow_run_id)):
        (folder / "checkpoints").mkdir(exist_ok=True)
        (folder / "checkpoints" / "last.pt").touch()
    return folder


def earlier_folder(config, flow_run_id):
    """As an earlier version called it."""
    folder = run_of(config, flow_run_id)
    return folder.rename(folder.with_name(f"20260101-120000-smoke-{str(flow_run_id)[:8]}"))


@pytest.mark.parametrize("other", [SAME_8, SAME_12])
def test_runs_whose_ids_begin_alike_have_a_folder_each_and_one_without_finds_none(
    tiny_config, other
):
    config = tiny_config()
    assert find_run_dir(config.runs_dir, ONE) is None  # nor is there any
    first = run_of(config, ONE)
    (config.runs_dir / f"notes-{SAME_8.hex}").mkdir()
    for text in (SAME_8, SAME_12, "0199d3a1", ONE.hex[1:]):
        assert find_run_dir(config.runs_dir, text) is None
    second = open_run_dir(config, other)
    assert second != first
    assert not (second / "checkpoints").exists()
    assert [first.name.rpartition("-")[2], second.name.rpartition("-")[2]] == [ONE.hex, other.hex]
    assert (find_run_dir(config.runs_dir, ONE), run_of(config, other)) == (first, second)
    assert open_run_dir(config, ONE) == first


def test_an_earlier_versions_folder_is_found_by_its_own_run_alone(tiny_config):
    config = tiny_config()
    folder = earlier_folder(config, ONE)
    assert find_run_dir(config.runs_dir, SAME_8) is None
    assert open_run_dir(config, SAME_8) != folder
    assert open_run_dir(config, ONE) == folder
    (folder / "run.json").unlink()  # then nothing says whose it is
    assert find_run_dir(config.runs_dir, ONE) is None


def test_the_folder_of_another_run_is_refused_and_left_as_it_is(tiny_config):
    config, changed = tiny_config(), tiny_config(training__seed=7)
    folder = earlier_folder(config, ONE)
    with pytest.raises(RunError, match=f"found the folder of flow run {ONE}.*give another id"):
        open_run_dir(changed, "0199d3a1")
    taken = run_of(config, SAME_8)
    info = RunInfo.load(taken).model_copy(update={"flow_run_id": str(SAME_12)})
    info.save(taken)
    with pytest.raises(RunError, match=f"of flow run {SAME_12}, not of run {SAME_8}: move"):
        open_run_dir(changed, SAME_8)
    with recorded(open_run_dir(config, "mine")):
        pass
    info = RunInfo.load(open_run_dir(config, "mine"))
    assert info.flow_run_id is None
    for path in (folder, taken):
        assert "seed: 7" not in (path / "config.yaml").read_text()


OPENED = """
import os, subprocess, sys, time
from uuid import UUID
from ups.config import load_config
from ups.runs.folder import open_run_dir
from ups.runs.record import recorded
config = load_config("smoke", {"runs_dir": sys.argv[1]})
with recorded(open_run_dir(config, UUID(sys.argv[2])), flow_run_id=sys.argv[2]):
    if sys.argv[3] == "program":
        child = subprocess.Popen(["sleep", "60"], close_fds=False).pid
    elif (child := os.fork()) == 0:
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("child", ["program", "fork"])
def test_a_folder_is_one_processs_and_free_once_that_is_killed(tiny_config, child):
    config = tiny_config()
    command = [sys.executable, "-c", OPENED, config.runs_dir, str(ONE), child]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            left = int(holder.stdout.readline())
            with pytest.raises(RunError, match=rf"open in another process \(process {holder.pid} "):
                open_run_dir(tiny_config(training__seed=7), ONE)
            folder = find_run_dir(config.runs_dir, ONE)
            assert "seed: 7" not in (folder / "config.yaml").read_text()
            open_run_dir(config, SAME_12)
        finally:
            holder.kill()
            holder.wait()
        try:
            assert open_run_dir(config, ONE) == folder  # while its child lives on
            os.kill(left, 0)
        finally:
            os.kill(left, signal.SIGKILL)
    assert RunInfo.load(folder).state is None


def test_a_run_that_has_ended_lets_its_folder_go(tiny_config):
    config = tiny_config()
    folder = open_run_dir(config, ONE)
    assert open_run_dir(config, ONE) == folder  # this process has it already
    assert is_locked(folder / ".lock")
    with pytest.raises(ConfigError, match="no"), recorded(folder):
        raise ConfigError("no")
    assert not is_locked(folder / ".lock")


def test_two_that_open_a_new_run_at_once_make_one_folder(tiny_config):
    config = tiny_config()
    with ThreadPoolExecutor(2) as pool:
        with exclusive_lock(config.runs_dir / ".lock"):
            opening = [pool.submit(open_run_dir, config, ONE) for _ in range(2)]
            time.sleep(0.2)
            assert not any(future.done() for future in opening)
        assert len({future.result() for future in opening}) == 1


@pytest.mark.parametrize("found", ["20260101T120000-abcdef", None])
def test_what_a_run_found_first_is_built_once_whatever_the_clocks_say(run_dir, found):
    assert has_to_build(run_dir, "key", found)
    assert has_to_build(run_dir, "key", found)  # killed before it was built
    assert not has_to_build(run_dir, "key", "20200101T000000-012345")  # by a clock that is off
    assert has_to_build(run_dir, "another key", "20200101T000000-012345")


def test_a_lock_that_is_about_to_be_free_is_waited_for(tiny_config):
    config = tiny_config()
    folder = open_run_dir(config, ONE)
    let_go(folder)
    lock = lock_now(folder / ".lock")  # as has it what a killed run was just starting
    timer = threading.Timer(0.2, os.close, [lock])
    timer.start()
    assert open_run_dir(config, ONE) == folder
    timer.join()


def test_a_log_that_cannot_be_written_ends_no_run_and_is_said_once(tiny_config, caplog):
    folder = open_run_dir(tiny_config(), "a")
    (folder / "run.log").symlink_to("/dev/full")
    with recorded(folder):
        for line in range(3):
            logging.getLogger("ups.x").info("line %d", line)
    assert RunInfo.load(folder).state == "completed"
    assert caplog.text.count("lacks lines: ") == 1


def test_a_record_that_cannot_be_written_changes_nothing_of_how_a_run_ends(tiny_config, caplog):
    folder = open_run_dir(tiny_config(), "a")
    with recorded(folder):
        shutil.rmtree(folder)
        folder.touch()
    assert "run.json could not be written: " in caplog.text
