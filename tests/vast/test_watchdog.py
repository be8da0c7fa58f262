"""However a script ends, or does not, the instance is stopped: tried until Vast accepts it."""

import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECOND = 1 / 3600
KEY = "the-key-of-the-container"
# The real job follows a run that the server calls Running for ever; beside it, a tracker writes.
HUNG = """
import sys, threading, time
from pathlib import Path
import httpx
from deployments import rented

rented.POLL_S = rented.LOOK_S = 0.05
RUN = {"id": "r", "expected_start_time": "2026-01-01T00:00:00+00:00", "total_run_time": 0,
       "state": {"type": "RUNNING", "name": "Running", "timestamp": "2026-01-01T00:00:01+00:00"}}

class Processes:
    def running(self, name):
        return True

def answer(request):
    return httpx.Response(200, json=RUN if request.method == "GET" else [])

def track(folder):
    folder.mkdir(parents=True)
    while True:
        (folder / "run.wandb").write_text(str(time.time()))
        time.sleep(0.05)

state, mount = map(Path, sys.argv[1:])
folder = mount / "runs" / "20260101-120000-smoke-aa" / "wandb"
threading.Thread(target=track, args=(folder,), daemon=True).start()
job = rented.Job({"overrides": {"runs_dir": str(mount / "runs")}}, state, 0.0, mount, False)
job.processes = Processes()
job.client = httpx.Client(transport=httpx.MockTransport(answer), base_url="http://x")
job._follow("r")
"""


@pytest.fixture
def hanging(busy_port):
    """The address of a git server that takes the connection and never says a word."""
    return f"git://127.0.0.1:{busy_port}/r.git"


def test_a_script_that_fails_stops_the_instance_with_the_containers_key(machine, vastai):
    assert machine.guarded().wait(20) != 0
    machine.wait_for(lambda: "the stop was accepted" in machine.log)
    # The key is not among the arguments.
    assert vastai.calls == [{"argv": ["stop", "instance", "4711"], "key": KEY}]
    assert "does not appear to be a git repository" in machine.log
    assert "ended with exit code 128 in phase clone" in machine.log
    assert machine.canaries == []


@pytest.mark.parametrize(
    "repo", ["--upload-pack=touch canary", "ext::sh -c touch% canary", "$(touch canary)", "-x"]
)
def test_a_hostile_address_runs_nothing(machine, repo):
    assert machine.start(machine.onstart(repo=repo)).wait(20) != 0
    assert "ended with exit code 128 in phase clone" in machine.log
    assert machine.canaries == []


def test_without_auto_shutdown_nothing_is_stopped(machine, vastai):
    assert machine.start(machine.onstart()).wait(20) != 0
    time.sleep(0.5)  # two rounds of a watchdog, if there were one
    assert vastai.calls == []
    assert not list(machine.temporary.glob("*/watchdog"))


def test_a_script_that_makes_no_progress_is_stopped(machine, vastai, hanging):
    process = machine.guarded(repo=hanging, max_stall_hours=SECOND)
    machine.wait_for(lambda: vastai.stops)
    assert process.poll() is None, "it hangs"
    assert "stopping the instance: no progress for 1 s" in machine.log


def test_a_run_that_hangs_is_stopped_though_a_tracker_goes_on_writing(
    machine, vastai, tmp_path, committed
):
    tree = tmp_path / "tree"
    (tree / "ups" / "vast").mkdir(parents=True)
    (tree / "job.py").write_text(HUNG)
    (tree / "ups" / "vast" / "provision.sh").write_text(
        f'export PYTHONPATH={ROOT}\n{sys.executable} job.py "$STATE" "$MOUNT"\n'
    )
    process = machine.guarded(
        repo=str(tree), commit=committed(tree, "a job"), max_stall_hours=3 * SECOND
    )
    machine.wait_for(lambda: vastai.stops)
    assert "flow run " in machine.log, "the job did not get as far as the run"
    assert "stopping the instance: no progress for 3 s" in machine.log
    assert process.poll() is None, "it hangs"
    (tracked,) = (machine.mount / "runs").glob("*/wandb/run.wandb")
    assert time.time() - tracked.stat().st_mtime < 3 + 5


def test_a_script_that_takes_too_long_is_stopped_though_it_gets_on(machine, vastai, hanging):
    machine.guarded(repo=hanging, max_hours=SECOND, max_stall_hours=SECOND)
    machine.wait_for(lambda: list(machine.temporary.glob("*/beat")))
    (beat,) = machine.temporary.glob("*/beat")
    while not vastai.stops:
        beat.touch()
        time.sleep(0.1)
    assert "stopping the instance: not done after 1 s" in machine.log


@pytest.mark.parametrize(
    ("kills_watchdog", "last", "message"),
    [
        # Nobody waits for the process: a zombie counts as dead.
        (False, signal.SIGKILL, "stopping the instance: the script died"),
        (True, signal.SIGTERM, "and its watchdog is gone"),
    ],
)
def test_of_script_and_watchdog_the_one_that_is_left_stops_the_instance(
    machine, vastai, hanging, kills_watchdog, last, message
):
    process = machine.guarded(repo=hanging)
    # From here on what the script says gets through: `tee` has its traps.
    machine.wait_for((machine.mount / "onstart.log").exists)
    if kills_watchdog:
        os.kill(machine.watchdog(), signal.SIGSTOP)
    os.killpg(process.pid, last)
    if kills_watchdog:  # only after the script has looked for it
        machine.wait_for(lambda: "ended with exit code 143" in machine.log)
        os.kill(machine.watchdog(), signal.SIGKILL)
    machine.wait_for(lambda: vastai.stops)
    assert message in machine.log


def test_a_machine_without_room_for_the_watchdog_is_stopped(machine, vastai):
    machine.env["TMPDIR"] = "/nowhere"
    machine.guarded()
    machine.wait_for(lambda: vastai.stops)


def test_a_stop_that_is_refused_is_tried_again_and_one_that_has_no_effect_asked_again(
    machine, vastai
):
    machine.env["UPS_AGAIN_S"] = "0.2"
    refused = "Failed with error 429: API requests too frequent\n"  # vastai ends with 0
    accepted = "stopping instance 4711.\n"
    vastai.answers("stop instance", refused, refused, accepted)
    machine.guarded()
    machine.wait_for(lambda: machine.log.count("the stop was accepted") >= 2)
    assert machine.log.count("the stop was not accepted") == 2


def test_without_the_tool_the_request_is_made_by_hand(machine, vastai):
    (vastai.folder / "vastai").unlink()
    answers, requests = [(429, False), (200, False), (200, True)], []

    class Vast(BaseHTTPRequestHandler):
        def do_PUT(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append((self.path, self.headers["Authorization"], body))
            status, success = answers.pop(0)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps({"success": success}).encode())

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Vast) as api:
        threading.Thread(target=api.serve_forever, args=(0.05,), daemon=True).start()
        machine.env["VAST_URL"] = f"http://127.0.0.1:{api.server_port}"
        machine.guarded()
        machine.wait_for(lambda: "the stop was accepted" in machine.log)
        api.shutdown()
    expected = ("/api/v0/instances/4711/", f"Bearer {KEY}", {"state": "stopped"})
    assert requests == [expected] * 3
    assert "HTTP Error 429" in machine.log
    assert KEY not in machine.log
