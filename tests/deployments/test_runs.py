"""Runs on the real stack: triggered by the bare name, cancelled in every phase, retried."""

import json
import os
import re
import signal
import subprocess
import threading
import time
from datetime import datetime
from uuid import UUID

import boto3
import httpx
import psutil
import pytest

from deployments.stack import deployment_names
from tests.deployments.triggers import schedule, trigger, trigger_by_name
from tests.live import wait_until
from tests.proxy import serving_proxy
from ups.config import SPLITS
from ups.files import read_json
from ups.latents.store import list_entries
from ups.runs.folder import CHECKPOINTS, UNVERIFIED, find_run_dir
from ups.runs.metrics import read_metrics
from ups.runs.stored import RunInfo

PARTS = ("object-store", "prefect-server", "worker")
CANCEL_S = 10


@pytest.fixture(scope="module")
def live(new_stack, examples_that_need, write_tiny, tmp_path_factory):
    """A stack with the data of a tiny config in its object store, started by a first run."""
    folder = tmp_path_factory.mktemp("live")
    with new_stack(folder, examples_that_need("a stack")) as live:
        live.config = write_tiny(
            folder / "tiny.yaml",
            runs_dir=str(folder / "runs"),
            data__root=str(folder / "staged"),
            data__sources={split: [{"key": f"tiny/{split}.h5"}] for split in SPLITS},
            data__generate__num_trajectories={"train": 12, "val": 4, "test": 4},
            training__latent_cache_dir=str(folder / "cache"),
            stages__operator__epochs=2,
        )
        live.means["smoke"] = str(live.config)
        first = live.example("ups run")
        assert first.returncode == 0, first.stdout + first.stderr
        live.run_id = re.search(r"/runs/flow-run/([0-9a-f-]{36})", first.stdout + first.stderr)[1]
        live.means["136ff0b8-3c1d-4a52-9f0e-6f2f5b7e9a10"] = live.run_id
        yield live


@pytest.fixture(scope="module")
def in_one_go(live):
    """The ids of two runs of a schedule, due in a while: tests that need no run come meanwhile."""
    return schedule(live, "in-one-go", time.time() + 15, 2, config=str(live.config))


def set_state(live, run_id, kind, name):
    state = {"state": {"type": kind, "name": name}}
    assert live.ask("POST", f"/flow_runs/{run_id}/set_state", state)["status"] == "ACCEPT"


def cancel(live, run_id):
    """Returns the seconds until it was cancelled."""
    set_state(live, run_id, "CANCELLING", "Cancelling")
    took = live.wait(lambda: live.run(run_id)["state_type"] == "CANCELLED")
    states = live.ask("GET", f"/flow_run_states/?flow_run_id={run_id}")
    assert "Crashed" not in {state["name"] for state in states}
    return took


def retry(live, run_id):
    set_state(live, run_id, "SCHEDULED", "AwaitingRetry")
    live.wait_for_state(run_id, "RUNNING")


def complete(live, run_id):
    """The breakdown of a run that has to come to its end."""
    run = live.wait_for_state(run_id)
    assert run["state_type"] == "COMPLETED", run["state"]["message"]
    return read_json(run_folder(live, run_id) / "breakdown.json")


def tasks(live, run_id):
    return {task["name"]: task["state_name"] for task in live.task_runs(run_id)}


def wait_until_running(live, run_id, task):
    live.wait(lambda: tasks(live, run_id).get(task) == "Running")


def expected_start(live, run_id):
    return datetime.fromisoformat(live.run(run_id)["expected_start_time"]).timestamp()


def scheduled_at(live, run_id):
    """When the server had the run: a busy client asks for it well after the start it names."""
    states = live.ask("GET", f"/flow_run_states/?flow_run_id={run_id}")
    (at,) = [state["timestamp"] for state in states if state["name"] == "Scheduled"]
    return datetime.fromisoformat(at).timestamp()


def run_folder(live, run_id):
    return find_run_dir(live.folder / "runs", UUID(run_id))


def count_epochs(live, run_id):
    return len(read_metrics(run_folder(live, run_id)).epochs)


def generations(live):
    return [manifest.generation for manifest in list_entries(live.folder / "cache")]


def pids(live):
    return {part: live.stack.processes.running(part).pid for part in PARTS}


def test_run_follows_to_the_breakdown_the_score_and_the_link(live):
    done = live.example("ups run")
    for expected in (
        "train: 12 trajectories generated",
        "1 download [train]",
        "epoch 5/5",
        "time to first step",
        "test nRMSE",
        f"{live.stack.ui_url}/runs/flow-run/",
    ):
        assert expected in done.stdout + done.stderr


@pytest.mark.usefixtures("in_one_go")
def test_follow_waits_for_a_run_and_gives_its_breakdown(live):
    done = live.ups("follow", live.run_id, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["flow_run_id"], found["state"]) == (live.run_id, "Completed")
    assert found["breakdown"] == complete(live, live.run_id)
    assert "epoch 5/5" in done.stderr


def test_status_says_what_runs_and_where(live):
    done = live.ups("status")
    assert done.returncode == 0
    assert done.stdout.count("running") == len(PARTS)
    found = json.loads(live.example("ups status").stdout)
    assert {part["part"]: part["pid"] for part in found["parts"]} == pids(live)
    assert json.loads(live.ups("up", "--json").stdout) == {
        "ui_url": live.stack.ui_url,
        "s3_url": live.stack.s3_url,
        "started": [],
    }


def test_up_has_made_pools_and_deployments_whose_form_describes_every_field(live):
    template = live.ask("GET", "/work_pools/local")["base_job_template"]
    assert "working_dir" in template["variables"]["properties"], "the UI's form needs it"
    deployment = live.deployment("train-burgers/train-burgers")
    assert deployment["parameters"] == {"config": "smoke"}
    fields = deployment["parameter_openapi_schema"]["properties"]
    assert {"config", "latent_dim", "epochs", "features", "overrides"} <= fields.keys()
    assert [name for name, field in fields.items() if not field.get("description")] == []
    # None for a GPU or a rented machine, which nobody serves here: it would stand Not Ready.
    assert {one["name"] for one in live.ask("POST", "/deployments/filter", {})} <= {
        *deployment_names(),
        *("in-one-go", "in-an-hour"),
    }
    assert str(live.stack.prefect_port) in (live.folder / "prefect.toml").read_text()


def test_the_object_store_wants_its_keys_which_no_process_shows(live):
    keys = live.stack.store_env()
    sourced = ["bash", "-c", "set -a; source .stack/env; set +a; env"]  # as the pages say
    shell = subprocess.run(sourced, cwd=live.folder, env={}, capture_output=True, text=True)
    assert {f"{name}={value}" for name, value in keys.items()} <= set(shell.stdout.splitlines())
    store = boto3.client(
        "s3",
        endpoint_url=keys["AWS_ENDPOINT_URL_S3"],
        region_name=keys["AWS_DEFAULT_REGION"],
        aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
    )
    store.create_bucket(Bucket="bucket")
    store.put_object(Bucket="bucket", Key="k", Body=b"bytes")
    assert store.get_object(Bucket="bucket", Key="k")["Body"].read() == b"bytes"
    assert httpx.get(f"{live.stack.s3_url}/bucket/k").is_client_error, "without the keys"
    store.close()
    command = live.stack.processes.running("object-store").cmdline()
    assert not any(keys["AWS_SECRET_ACCESS_KEY"] in word for word in command)


def test_runs_that_a_schedule_makes_in_one_go_have_a_folder_each(live, in_one_go):
    assert len({run_id[:8] for run_id in in_one_go}) == 1  # else this shows nothing
    for run_id in in_one_go:
        breakdown = complete(live, run_id)
        folder = run_folder(live, run_id)
        record = RunInfo.load(folder)
        assert folder.name.endswith(f"-{run_id.replace('-', '')}")
        assert (record.flow_run_id, record.attempt) == (run_id, 1)
        assert breakdown["run"] == folder.name
        assert breakdown["triggered_at"] == expected_start(live, run_id)  # not when it was made
        assert breakdown["ttfs_s"] > 0
        assert count_epochs(live, run_id) == 2
        assert read_metrics(folder).epochs[0]["time"] > record.started_at
    assert len({run_folder(live, run_id) for run_id in in_one_go}) == 2


def test_the_bare_deployment_name_runs_and_a_retry_resumes_at_the_end(live):
    run_id = trigger_by_name(live, epochs=3)
    first = complete(live, run_id)
    assert first["cache_reused"] is True
    queue, boot = first["spans"][:2]
    assert (queue["phase"], queue["start"]) == ("queue", first["triggered_at"])
    record = RunInfo.load(run_folder(live, run_id))
    assert queue["end"] == boot["start"] == pytest.approx(record.process_started_at, abs=0.05)
    assert first["triggered_at"] == scheduled_at(live, run_id) >= expected_start(live, run_id)

    retry(live, run_id)
    retried = complete(live, run_id)
    assert retried["triggered_at"] > first["triggered_at"]
    assert retried["ttfs_s"] is None  # every step was taken before
    assert retried["nrmse_rollout"] == first["nrmse_rollout"]


def test_a_run_cancelled_in_training_leaves_a_checkpoint_that_a_retry_resumes(live):
    run_id = trigger(live, overrides={"stages.operator.epochs": 100_000})
    wait_until_running(live, run_id, "4 train-operator")
    folder = run_folder(live, run_id)
    live.wait((folder / "checkpoints" / "last.pt").exists)
    done = live.ups("follow", run_id, "--timeout", "0")
    assert (done.returncode, "the run goes on" in done.stdout + done.stderr) == (124, True)
    assert cancel(live, run_id) < CANCEL_S
    record = RunInfo.load(folder)
    assert (record.state, record.attempt) == ("stopped", 1)
    assert record.deployment

    epochs_before = count_epochs(live, run_id)
    set_state(live, run_id, "SCHEDULED", "AwaitingRetry")
    live.wait(lambda: count_epochs(live, run_id) > epochs_before)
    cancel(live, run_id)
    epochs = [row["epoch"] for row in read_metrics(folder).epochs]
    assert RunInfo.load(folder).attempt == 2
    assert epochs == list(range(1, len(epochs) + 1))  # none twice: it went on where it was
    for key in ("overhead", "overhead-breakdown"):
        assert live.artifact(key, run_id)  # of two attempts the only one
    title = live.artifact("training", run_id)["description"]
    assert title == f"smoke: stopped in epoch {len(epochs) + 1} of 100000"

    in_an_hour = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
    details = {"state_details": {"scheduled_time": in_an_hour}}
    waiting = {"state": {"type": "SCHEDULED", "name": "AwaitingRetry", **details}}
    live.ask("POST", f"/flow_runs/{run_id}/set_state", waiting)
    assert cancel(live, run_id) < CANCEL_S  # no process is there any more to be told


def test_a_run_cancelled_before_its_data_are_verified_goes_on_at_its_step(live):
    gate = threading.Event()
    with serving_proxy(live.stack.s3_url) as handler:

        def stall(path):  # the last that comes of train, once all its rows are there
            ranges = handler.proxy.ranges
            if "train" in path and len(ranges) > 3 and ranges[-1].startswith("bytes=0-"):
                gate.wait(60)

        handler.proxy.faults.on_range = stall
        overrides = {
            "data.endpoint_url": handler.proxy.url,
            "data.root": str(live.folder / "unverified"),
            "training.latent_cache_dir": str(live.folder / "unverified"),
            "features.parallel_downloads": False,
        }
        run_id = trigger(live, overrides=overrides)
        live.wait(lambda: list(live.folder.glob(f"runs/*/{CHECKPOINTS}/{UNVERIFIED}")))
        assert cancel(live, run_id) < CANCEL_S
        folder = run_folder(live, run_id)
        assert [path.name for path in folder.rglob("*.pt")] == [UNVERIFIED]
        gate.set()
        set_state(live, run_id, "SCHEDULED", "AwaitingRetry")
        live.wait(lambda: live.run(run_id)["state_type"] == "COMPLETED")
    resumed = re.search(rf"{UNVERIFIED} at epoch 1, step (\d+)", (folder / "run.log").read_text())
    assert int(resumed[1]) > 0
    assert {path.name for path in folder.rglob("*.pt")} == {"best.pt", "last.pt"}


def test_a_run_cancelled_before_it_begins_ends_cancelled_and_frees_its_slot(live):
    run_id = trigger(live)
    wait_until(lambda: live.run(run_id)["state_type"] == "PENDING", 20)
    assert cancel(live, run_id) < CANCEL_S
    limit = live.deployment("train-burgers/train-burgers")["global_concurrency_limit"]
    assert limit["active_slots"] == 0
    done = live.ups("follow", run_id)
    assert (done.returncode, "the run was cancelled" in done.stderr) == (3, True)


def test_a_run_cancelled_while_it_downloads_ends_cancelled(live):
    store = live.stack.processes.running("object-store").pid
    elsewhere = {"data.root": str(live.folder / "elsewhere")}
    os.kill(store, signal.SIGSTOP)
    try:
        run_id = trigger(live, overrides=elsewhere)
        wait_until_running(live, run_id, "1 download [train]")
        assert cancel(live, run_id) < CANCEL_S
    finally:
        os.kill(store, signal.SIGCONT)
    assert not list((live.folder / "elsewhere").rglob("*.h5"))


def test_ctrl_c_of_a_sweep_cancels_what_waits_and_leaves_what_runs(live):
    words = ("--set", "training.seed=0,1,2", "--set", "stages.operator.epochs=100000")
    only = {"flow_runs": {"tags": {"all_": ["swept"]}}, "sort": "START_TIME_ASC"}
    with live.start("sweep", str(live.config), *words, "--tag", "swept") as sweep:

        def all_are_made_and_one_runs():
            states = [run["state_type"] for run in live.ask("POST", "/flow_runs/filter", only)]
            return len(states) == 3 and "RUNNING" in states

        live.wait(all_are_made_and_one_runs)
        sweep.send_signal(signal.SIGINT)
        _, errors = sweep.communicate()
    assert (sweep.returncode, "cancelled what had not begun: 2 of 3" in errors) == (130, True)
    runs = {run["state_type"]: run for run in live.ask("POST", "/flow_runs/filter", only)}
    assert runs.keys() == {"RUNNING", "CANCELLED"}
    assert cancel(live, runs["RUNNING"]["id"]) < CANCEL_S


def test_a_run_made_long_before_its_start_overwrites_what_was_built_since(live):
    in_an_hour = time.time() + 3600
    given = {"config": str(live.config), "overwrite_cache": True, "epochs": 1}
    (run_id,) = schedule(live, "in-an-hour", in_an_hour, 1, **given)
    later = complete(live, trigger(live, overwrite_cache=True, epochs=1))
    assert later["cache_reused"] is False
    built_later = generations(live)
    set_state(live, run_id, "SCHEDULED", "Scheduled")  # "run now"
    assert complete(live, run_id)["cache_reused"] is False
    built = generations(live)
    assert built != built_later

    retry(live, run_id)
    assert complete(live, run_id)["cache_reused"] is True
    assert generations(live) == built


def test_a_restarted_server_loses_no_run_and_doubles_none(live):
    live.stack.processes.running("prefect-server").kill()
    assert live.ups("up").returncode == 0
    for run_id in [trigger(live) for _ in range(2)]:
        complete(live, run_id)
        names = [task["name"] for task in live.task_runs(run_id)]
        assert names.count("4 train-operator") == 1


def test_up_starts_what_is_not_running_and_moves_nothing(live):
    before = pids(live)
    done = live.example("ups up")
    assert (done.returncode, "the stack is running" in done.stdout) == (0, True), done.stderr
    assert pids(live) == before

    done = live.ups("up", UPS_PREFECT_PORT=str(live.stack.prefect_port + 1))
    assert done.returncode == 1
    assert "`ups down` first" in done.stderr

    live.stack.processes.running("worker").terminate()  # which takes it two seconds
    live.wait(lambda: live.stack.processes.is_ending("worker"))
    nowhere = "http://127.0.0.1:9"
    done = live.ups("up", HTTP_PROXY=nowhere, http_proxy=nowhere, ALL_PROXY=nowhere)
    assert done.returncode == 0, done.stderr
    assert {part for part, pid in pids(live).items() if pid != before[part]} == {"worker"}


def test_the_doctor_finds_nothing_broken_on_a_stack_that_runs(live):
    found = json.loads(live.example("ups doctor").stdout)
    own = {
        one["group"]: one["status"]
        for one in found["findings"]
        if one["name"] in ("this machine's", "local", "deployments")
    }
    assert found["well"], found
    assert own == dict.fromkeys(("server", "pool", "worker", "store", "credentials"), "ok")


def test_the_examples_of_the_help_run_and_down_stops_what_up_started(live):  # the last one
    before = pids(live)
    for name in live.examples:
        done = live.example(name)
        assert done.returncode == 0, f"{name}\n{done.stdout}{done.stderr}"
    assert name == "ups down"
    assert all(part in done.stdout for part in PARTS)
    assert not any(psutil.pid_exists(pid) for pid in before.values())
    again = live.ups("down").stdout.splitlines()
    assert again[0] == f"nothing was running in {live.stack.folder}"
    assert again[1].startswith("on disk  ")
