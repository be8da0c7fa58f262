"""Warm and cold starts, with a real process kept ready; the runs are small modules of our own."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap

import psutil
import pytest

from deployments.layout import PROJECT_DIR
from deployments.start import LENGTH, STATUS, receive
from flows.train_burgers import train_burgers
from tests.live import wait_until
from ups.config import dump_config, load_config

START = [sys.executable, "-I", "-S", str(PROJECT_DIR / "deployments" / "start.py")]


@pytest.fixture(scope="module")
def ready(tmp_path_factory, cuda_driver):
    """The socket of a process kept ready, and its log."""
    folder = tmp_path_factory.mktemp("warm")
    path, log = folder / "warm.sock", folder / "log"
    with log.open("wb") as output:
        zygote = subprocess.Popen(
            [sys.executable, "-m", "deployments.zygote", str(path)],
            cwd=PROJECT_DIR,
            env={**os.environ, **({"LD_LIBRARY_PATH": str(cuda_driver)} if cuda_driver else {})},
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
        )
    wait_until(lambda: "ready at" in log.read_text(), 120)
    yield path, log
    zygote.stdin.close()
    assert zygote.wait(20) == 0
    assert not path.exists()


@pytest.fixture
def start(ready, tmp_path):
    """`start(code, **env)`: a run of `code`, from the folder that it lies in."""

    def begin(code, **env):
        (tmp_path / "the_run.py").write_text(textwrap.dedent(code))
        return subprocess.Popen(
            [*START, "the_run"],
            cwd=tmp_path,
            env={**os.environ, "UPS_WARM_SOCKET": str(ready[0]), **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return begin


def output_of(process):
    text, _ = process.communicate(timeout=30)
    return text.strip()


@pytest.mark.parametrize(
    "claim",
    [
        "os.environ['UPS_STARTED'] == 'warm'",
        "{'torch', 'prefect'} <= sys.modules.keys()",
        "not sys.modules['torch'].cuda.is_initialized()",  # CUDA does not survive a fork
        "os.getpid() == os.getsid(0)",
        "signal.getsignal(signal.SIGTERM) == signal.SIG_DFL",
    ],
)
def test_a_warm_run_finds_the_slow_imports_done_and_is_else_a_process_of_its_own(start, claim):
    assert output_of(start(f"import os, signal, sys; print({claim})")) == "True"


def test_a_run_that_trains_itself_makes_its_context_beside_its_boot(start, cuda_driver, tmp_path):
    if cuda_driver is None:
        pytest.skip("needs a C compiler, and no driver of CUDA")
    calls, waiting = tmp_path / "calls", "import time; time.sleep(0.3)"
    assert output_of(start(waiting, CUDA_CALLS=str(calls))) == ""
    assert not calls.exists(), "another flow has no use for it"
    run = start(waiting, CUDA_CALLS=str(calls), PREFECT__FLOW_NAME=train_burgers.name)
    assert output_of(run) == ""
    assert calls.read_text().split()[-1] == "cuDevicePrimaryCtxRetain"
    config = load_config("smoke", {"training.ranks": 2})
    (tmp_path / "ranked.yaml").write_text(dump_config(config))
    alone = {"training.ranks": 1}
    asked_for = {
        json.dumps({"overrides": {"training.ranks": 2}}): False,  # others train for it
        json.dumps({"config": "ranked.yaml"}): False,
        json.dumps({"config": "ranked.yaml", "overrides": alone}): True,
        json.dumps({"config": "ranked.yaml", "overrides": {"training.ranks": "many"}}): True,
    }
    runs = []
    for number, parameters in enumerate(asked_for):
        env = {"CUDA_CALLS": f"{calls}-{number}", "UPS_PARAMETERS": parameters}
        runs.append(start(waiting, PREFECT__FLOW_NAME=train_burgers.name, **env))
    assert [output_of(run) for run in runs] == [""] * len(runs)
    made = [os.path.exists(f"{calls}-{number}") for number in range(len(runs))]
    assert made == list(asked_for.values())


@pytest.mark.parametrize("env", [{"UPS_START_MODE": "cold"}, {"UPS_WARM_SOCKET": "/nowhere"}])
def test_a_cold_start_is_a_fresh_interpreter_that_imported_without_the_collector(start, env):
    code = """
        import gc, os, sys
        collected = gc.get_stats()[0]["collections"]  # else 330 times, and 20 before it rests
        print(os.environ["UPS_STARTED"], "torch" in sys.modules, gc.isenabled(), collected < 100)
        print(len(sys.argv))
    """
    *lines, state, arguments = output_of(start(code, **env)).splitlines()
    assert (state, arguments) == ("cold False True True", "1")
    assert not lines or "no process is kept ready at /nowhere" in lines[0]


@pytest.mark.parametrize("code", [0, 1, 7])
def test_exit_codes_come_back(start, code):
    run = start(f"raise SystemExit({code})")
    run.communicate(timeout=30)
    assert run.returncode == code


def test_an_exception_is_shown_and_is_exit_code_1(start):
    run = start("raise RuntimeError('on purpose')")
    assert "RuntimeError: on purpose" in output_of(run)
    assert run.returncode == 1


def test_runs_do_not_see_each_others_environment_folder_or_modules(start):
    changing = """
        import os, sys, prefect
        os.environ["LEFT_BEHIND"] = "1"
        prefect.left_behind = True
        os.chdir("/")
        print("done")
    """
    assert output_of(start(changing, ONLY_HERE="1")) == "done"
    looking = """
        import os, prefect
        print("LEFT_BEHIND" in os.environ, "ONLY_HERE" in os.environ, os.getcwd() == "/",
              hasattr(prefect, "left_behind"))
    """
    assert output_of(start(looking)) == "False False False False"


def test_runs_draw_different_random_numbers(start):
    code = "import random, numpy; print(random.random(), numpy.random.random())"
    first, second = (output_of(start(code)).split() for _ in range(2))
    assert first[0] != second[0]
    assert first[1] != second[1]


def test_a_run_has_the_settings_of_its_own_environment_and_folder(start, tmp_path):
    code = """
        from prefect.settings import get_current_settings
        settings = get_current_settings()
        print(settings.api.url, settings.logging.level)
    """
    assert output_of(start(code, PREFECT_API_URL="http://one/api")).startswith("http://one/api")
    assert output_of(start(code, PREFECT_API_URL="http://two/api")).startswith("http://two/api")
    (tmp_path / "prefect.toml").write_text('[logging]\nlevel = "ERROR"\n')
    assert output_of(start(code, PREFECT_API_URL="http://one/api")) == "http://one/api ERROR"


WAITING = """
    import os, signal, sys, time
    def end(number, frame):
        os.write(1, b"told to end\\n")  # the signal may come while the print below writes
        {end}
    signal.signal(signal.SIGTERM, end)
    print(os.getpid(), flush=True)
    while True:
        time.sleep(0.05)  # not once and long: a signal just before the sleep would wait for its end
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("sys.exit(3)", 3),
        ("signal.signal(number, signal.SIG_DFL); os.kill(os.getpid(), number)", -signal.SIGTERM),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    ],
)
def test_a_signal_reaches_the_run_whose_end_looks_as_it_was(start, end, code):
    run = start(WAITING.format(end=end))
    int(run.stdout.readline())
    run.send_signal(signal.SIGTERM)
    assert "told to end" in output_of(run)
    assert run.returncode == code


def test_a_signal_that_comes_before_the_run_is_forked_reaches_it(start, tmp_path):
    path = tmp_path / "warm.sock"
    with socket.socket(socket.AF_UNIX) as listener, subprocess.Popen(["sleep", "60"]) as forked:
        listener.bind(str(path))
        listener.listen()
        stand_in = start("", UPS_WARM_SOCKET=str(path))
        connection, _ = listener.accept()
        with connection:
            receive(connection, LENGTH.size)  # the handlers are set before anything is sent
            stand_in.send_signal(signal.SIGTERM)
            connection.sendall(STATUS.pack(forked.pid))
            assert forked.wait(30) == -signal.SIGTERM
            connection.sendall(STATUS.pack(3))
            assert (output_of(stand_in), stand_in.returncode) == ("", 3)


def test_a_run_does_not_outlive_the_process_that_stands_in_for_it(start):
    run = start(WAITING.format(end="sys.exit(3)"))
    pid = int(run.stdout.readline())
    run.kill()
    wait_until(lambda: not psutil.pid_exists(pid))
    run.communicate(timeout=30)


def test_a_run_does_not_outlive_its_keeper_whose_end_is_said(start):
    run = start(WAITING.format(end="sys.exit(3)"))
    pid = int(run.stdout.readline())
    os.kill(psutil.Process(pid).ppid(), signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(pid))
    output = output_of(run)
    assert "told to end" in output
    assert "the process kept ready lost sight of the run" in output
    assert run.returncode == 1


def test_changed_files_are_imported_anew_and_the_kept_process_starts_over(start, ready):
    path, log = ready
    code = "import sys; print('ups.training.loop' in sys.modules, 'torch' in sys.modules)"
    assert output_of(start(code)) == "True True"
    os.utime(PROJECT_DIR / "ups" / "training" / "loop.py")
    assert output_of(start(code)) == "False True"
    wait_until(lambda: log.read_text().count("ready at") == 2, 60)
    assert output_of(start(code)) == "True True"
