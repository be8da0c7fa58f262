"""Runs on the real stack: triggered by the bare name, cancelled in every phase, retried."""

import json
import os
import re
import signal
import subprocess
import time
from uuid import UUID

import boto3
import httpx
import psutil
import pytest
import yaml

from deployments.layout import BIN_DIR, Stack
from ups.config import load_config
from ups.latents.store import list_entries
from ups.runs import find_run_dir, read_info
from ups.telemetry.metrics_file import read_metrics

PARTS = ("object-store", "prefect-server", "worker")
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
CANCEL_S = 10


class LiveStack:
    def __init__(self, folder):
        self.folder = folder
        self.stack = Stack.find()
        self.api = httpx.Client(base_url=self.stack.api_url, timeout=30)

    def trigger(self, config, **parameters):
        """`prefect deployment run train-burgers`, as a person types it in the project's folder."""
        command = [BIN_DIR / "prefect", "deployment", "run", "train-burgers"]
        command += ["-p", f"config={config}"]
        for key, value in parameters.items():
            command += ["-p", f"{key}={json.dumps(value)}"]
        env = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
        done = subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return re.search(r"UUID: ([0-9a-f-]{36})", done.stdout)[1]

    def schedule(self, name, first_at, count, **parameters):
        """Deploy with `count` runs a second apart; their ids, once the scheduler has made them."""
        path = "/deployments/name/train-burgers/train-burgers"
        same = ("flow_id", "entrypoint", "path", "pull_steps", "work_pool_name", "job_variables")
        like = self.api.get(path).json()
        start = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(first_at))
        rule = f"DTSTART:{start}\nRRULE:FREQ=SECONDLY;COUNT={count}"
        body = {key: like[key] for key in same} | {"name": name, "parameters": parameters}
        body["schedules"] = [{"schedule": {"rrule": rule, "timezone": "UTC"}}]
        answer = self.api.post("/deployments/", json=body)
        assert answer.is_success, answer.text
        only = {"deployments": {"id": {"any_": [answer.json()["id"]]}}, "sort": "START_TIME_ASC"}

        def made():
            return [run["id"] for run in self.api.post("/flow_runs/filter", json=only).json()]

        self.wait(lambda: len(made()) == count)
        return made()

    def state(self, run_id):
        return self.api.get(f"/flow_runs/{run_id}").json()["state"]

    def set_state(self, run_id, kind, name):
        state = {"type": kind, "name": name}
        answer = self.api.post(f"/flow_runs/{run_id}/set_state", json={"state": state})
        assert answer.json()["status"] == "ACCEPT", answer.text

    def tasks(self, run_id):
        only = {"flow_runs": {"id": {"any_": [run_id]}}}
        found = self.api.post("/task_runs/filter", json=only).json()
        return {run["name"]: run["state_name"] for run in found}

    def wait(self, condition, timeout_s=90):
        started = time.monotonic()
        while time.monotonic() - started < timeout_s:
            if condition():
                return time.monotonic() - started
            time.sleep(0.25)
        raise AssertionError(f"not after {timeout_s} s")

    def wait_until_final(self, run_id, timeout_s=90):
        return self.wait(lambda: self.state(run_id)["type"] in FINAL, timeout_s)

    def wait_until_running(self, run_id, task):
        self.wait(lambda: self.tasks(run_id).get(task) == "Running")

    def run_folder(self, run_id):
        return find_run_dir(self.folder / "runs", UUID(run_id))

    def breakdown(self, run_id):
        return json.loads((self.run_folder(run_id) / "breakdown.json").read_text())


@pytest.fixture(scope="module")
def live(ups, free_ports, tmp_path_factory):
    """A stack of this module's own, with the data of a tiny config in its object store."""
    folder = tmp_path_factory.mktemp("live")
    ports = free_ports(2)
    changes = {
        "UPS_STACK_DIR": str(folder / ".stack"),
        "UPS_PREFECT_PORT": str(ports[0]),
        "UPS_S3_PORT": str(ports[1]),
    }

    with pytest.MonkeyPatch.context() as patch:
        for name, value in changes.items():
            patch.setenv(name, value)
        try:
            code, output = ups("run", "--config", str(write_config(folder)))
            assert code == 0, output
            live = LiveStack(folder)
            live.first_output = output
            yield live
            live.api.close()
        finally:
            ups("down")


def write_config(folder):
    sources = {s: [{"key": f"tiny/{s}.h5"}] for s in ("train", "val", "test")}
    overrides = {
        "runs_dir": str(folder / "runs"),
        "data.root": str(folder / "staged"),
        "data.sources": sources,
        "data.grid_points": 256,
        "data.generate.num_trajectories": {"train": 12, "val": 4, "test": 4},
        "latent.tokens": 8,
        "latent.dim": 16,
        "operator.hidden_dim": 32,
        "training.batch_size": 4,
        "training.latent_cache_dir": str(folder / "cache"),
        "stages.operator.epochs": 2,
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(load_config("smoke", overrides).model_dump(mode="json")))
    return path


@pytest.fixture
def config(live):
    return live.folder / "tiny.yaml"


def test_run_follows_to_the_breakdown_the_score_and_the_link(live):
    output = live.first_output
    for expected in (
        "train: 12 trajectories generated",
        "1 download [train]",
        "epoch 2/2",
        "time to first step",
        "test nRMSE",
        f"{live.stack.ui_url}/runs/flow-run/",
    ):
        assert expected in output, output


def test_follow_waits_for_a_run_and_gives_its_breakdown(live, ups_process):
    run_id = re.search(r"/runs/flow-run/([0-9a-f-]{36})", live.first_output)[1]
    done = ups_process("follow", run_id, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["flow_run_id"], found["state"]) == (run_id, "Completed")
    assert found["breakdown"] == live.breakdown(run_id)
    assert "epoch 2/2" in done.stderr


def test_status_says_what_runs_and_where(live, ups, ups_process):
    code, output = ups("status")
    assert code == 0
    assert output.count("running") == len(PARTS)
    found = json.loads(ups_process("status", "--json").stdout)
    assert {part["part"]: part["pid"] for part in found["parts"]} == pids(live)
    assert json.loads(ups_process("up", "--json").stdout) == {
        "ui_url": live.stack.ui_url,
        "s3_url": live.stack.s3_url,
        "started": [],
    }


def test_the_bare_deployment_name_runs_and_a_retry_resumes_at_the_end(live, config):
    run_id = live.trigger(config, epochs=3)
    live.wait_until_final(run_id)
    assert live.state(run_id)["type"] == "COMPLETED"
    first = live.breakdown(run_id)
    assert first["cache_reused"] is True
    assert first["spans"][0]["phase"] == "queue"

    live.set_state(run_id, "SCHEDULED", "AwaitingRetry")
    live.wait(lambda: live.state(run_id)["type"] == "RUNNING")
    live.wait_until_final(run_id)
    assert live.state(run_id)["type"] == "COMPLETED"
    retried = live.breakdown(run_id)
    assert retried["triggered_at"] > first["triggered_at"]
    assert retried["ttfs_s"] is None  # every step was taken before
    assert retried["nrmse_rollout"] == first["nrmse_rollout"]


def test_a_run_cancelled_in_training_leaves_a_checkpoint_that_a_retry_resumes(live, config, ups):
    endless = {"stages.operator.epochs": 100_000}
    run_id = live.trigger(config, overrides=endless)
    live.wait_until_running(run_id, "4 train-operator")
    last = live.run_folder(run_id) / "checkpoints" / "last.pt"
    live.wait(last.exists)
    code, output = ups("follow", run_id, "--timeout", "0")
    assert (code, "the run goes on" in output) == (124, True), output
    live.set_state(run_id, "CANCELLING", "Cancelling")
    assert live.wait(lambda: live.state(run_id)["type"] == "CANCELLED") < CANCEL_S
    record = read_info(live.run_folder(run_id))
    assert (record.state, record.attempt) == ("stopped", 1)
    assert record.deployment

    epochs_before = count_epochs(live, run_id)
    live.set_state(run_id, "SCHEDULED", "AwaitingRetry")
    live.wait(lambda: count_epochs(live, run_id) > epochs_before)
    live.set_state(run_id, "CANCELLING", "Cancelling")
    live.wait(lambda: live.state(run_id)["type"] == "CANCELLED")
    epochs = [row["epoch"] for row in read_metrics(live.run_folder(run_id)).epochs]
    assert read_info(live.run_folder(run_id)).attempt == 2
    assert epochs == list(range(1, len(epochs) + 1))  # none twice: it went on where it was


def count_epochs(live, run_id):
    return len(read_metrics(live.run_folder(run_id)).epochs)


def test_a_run_cancelled_while_it_downloads_ends_cancelled(live, config):
    store = live.stack.processes.running("object-store").pid
    elsewhere = {"data.root": str(live.folder / "elsewhere")}
    os.kill(store, signal.SIGSTOP)
    try:
        run_id = live.trigger(config, overrides=elsewhere)
        live.wait_until_running(run_id, "1 download [train]")
        live.set_state(run_id, "CANCELLING", "Cancelling")
        assert live.wait(lambda: live.state(run_id)["type"] == "CANCELLED") < CANCEL_S
    finally:
        os.kill(store, signal.SIGCONT)
    assert not list((live.folder / "elsewhere").rglob("*.h5"))


def test_runs_that_a_schedule_makes_in_one_go_have_a_folder_each(live, config):
    run_ids = live.schedule("in-one-go", time.time() + 20, 2, config=str(config))
    assert len({run_id[:8] for run_id in run_ids}) == 1  # else this shows nothing
    for run_id in run_ids:
        live.wait_until_final(run_id)
        assert live.state(run_id)["type"] == "COMPLETED"
        folder, record = live.run_folder(run_id), read_info(live.run_folder(run_id))
        assert folder.name.endswith(f"-{run_id.replace('-', '')}")
        assert (record.flow_run_id, record.attempt) == (run_id, 1)
        breakdown = live.breakdown(run_id)
        assert breakdown["run"] == folder.name
        assert breakdown["ttfs_s"] > 0
        assert count_epochs(live, run_id) == 2
        assert read_metrics(folder).epochs[0]["time"] > record.started_at
    assert len({live.run_folder(run_id) for run_id in run_ids}) == 2


def test_a_run_made_long_before_its_start_overwrites_what_was_built_since(live, config):
    in_an_hour = time.time() + 3600
    given = {"config": str(config), "overwrite_cache": True, "epochs": 1}
    (run_id,) = live.schedule("in-an-hour", in_an_hour, 1, **given)
    live.wait_until_final(since := live.trigger(config, overwrite_cache=True, epochs=1))
    assert live.breakdown(since)["cache_reused"] is False
    built_since = generations(live)
    live.set_state(run_id, "SCHEDULED", "Scheduled")  # "run now"
    live.wait_until_final(run_id)
    assert live.breakdown(run_id)["cache_reused"] is False
    built = generations(live)
    assert built != built_since

    live.set_state(run_id, "SCHEDULED", "AwaitingRetry")
    live.wait(lambda: live.state(run_id)["type"] == "RUNNING")
    live.wait_until_final(run_id)
    assert live.breakdown(run_id)["cache_reused"] is True
    assert generations(live) == built


def generations(live):
    return [manifest.generation for manifest in list_entries(live.folder / "cache")]


def test_a_restarted_server_loses_no_run_and_doubles_none(live, config, ups):
    live.stack.processes.running("prefect-server").kill()
    assert ups("up")[0] == 0
    run_ids = [live.trigger(config) for _ in range(2)]
    for run_id in run_ids:
        live.wait_until_final(run_id)
        assert live.state(run_id)["type"] == "COMPLETED"
        assert list(live.tasks(run_id)).count("4 train-operator") == 1


def test_every_field_of_the_run_form_is_described(live):
    deployment = live.api.get("/deployments/name/train-burgers/train-burgers").json()
    fields = deployment["parameter_openapi_schema"]["properties"]
    assert {"config", "latent_dim", "epochs", "features", "overrides"} <= fields.keys()
    assert [name for name, field in fields.items() if not field.get("description")] == []


def test_up_has_made_pools_and_deployments(live):
    for pool in ("local", "gpu"):
        template = live.api.get(f"/work_pools/{pool}").json()["base_job_template"]
        assert "working_dir" in template["variables"]["properties"], "the UI's form needs it"
    name = "/deployments/name/train-burgers/"
    assert live.api.get(name + "train-burgers").json()["parameters"] == {"config": "smoke"}
    assert live.api.get(name + "gpu").json()["work_pool_name"] == "gpu"
    assert str(live.stack.prefect_port) in (live.folder / "prefect.toml").read_text()


def test_the_object_store_wants_its_keys_which_no_process_shows(live):
    keys = live.stack.store_env()
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


def test_up_starts_what_is_not_running_and_moves_nothing(live, ups, free_ports):
    before = pids(live)
    code, output = ups("up")
    assert (code, "the stack is running" in output) == (0, True), output
    assert pids(live) == before

    code, output = ups("up", UPS_PREFECT_PORT=str(free_ports(1)[0]))
    assert code == 1
    assert "`ups down` first" in output

    live.stack.processes.running("worker").kill()
    code, output = ups("up")
    assert code == 0, output
    assert {part for part, pid in pids(live).items() if pid != before[part]} == {"worker"}


def pids(live):
    return {part: live.stack.processes.running(part).pid for part in PARTS}


def test_down_stops_what_up_started(live, ups):  # the last one: nothing runs after it
    before = pids(live)
    code, output = ups("down")
    assert code == 0, output
    assert all(part in output for part in PARTS)
    assert not any(psutil.pid_exists(pid) for pid in before.values())
    assert ups("down") == (0, "nothing was running\n")
