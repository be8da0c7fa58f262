"""The real stack, through the real command line: server, store, worker, deployments."""

import os
import socket
import subprocess
import sys

import boto3
import httpx
import psutil
import pytest

from deployments.layout import PROJECT_DIR, Stack

PARTS = ("object-store", "prefect-server", "worker")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def ups(tmp_path, monkeypatch):
    """Runs `ups …` on a stack of its own, which is stopped at the end."""
    monkeypatch.setenv("UPS_STACK_DIR", str(tmp_path / ".stack"))
    env = {**os.environ, "UPS_PREFECT_PORT": str(free_port()), "UPS_S3_PORT": str(free_port())}

    def call(*arguments, **changes):
        command = [sys.executable, "-m", "deployments.cli", *arguments]
        done = subprocess.run(
            command, env=env | changes, cwd=PROJECT_DIR, capture_output=True, text=True
        )
        return done.returncode, done.stdout + done.stderr

    yield call
    call("down")


def test_up_starts_everything_once_and_down_stops_exactly_that(ups, tmp_path):
    code, output = ups("up")
    assert code == 0, output
    stack = Stack.find()
    pids = {part: stack.processes.running(part).pid for part in PARTS}

    for pool in ("local", "gpu"):
        template = httpx.get(f"{stack.api_url}/work_pools/{pool}").json()["base_job_template"]
        assert "working_dir" in template["variables"]["properties"], "the UI's form needs it"
    name = f"{stack.api_url}/deployments/name/train-burgers/"
    assert httpx.get(name + "train-burgers").json()["parameters"] == {"config": "smoke"}
    assert httpx.get(name + "gpu").json()["work_pool_name"] == "gpu"

    keys = stack.store_env()
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
    assert httpx.get(f"{stack.s3_url}/bucket/k").is_client_error, "without the keys"
    store.close()
    secret = keys["AWS_SECRET_ACCESS_KEY"]
    assert not any(secret in word for word in psutil.Process(pids["object-store"]).cmdline())
    assert str(stack.prefect_port) in (tmp_path / "prefect.toml").read_text()

    code, output = ups("up")
    assert (code, "the stack is running" in output) == (0, True), output
    assert {part: stack.processes.running(part).pid for part in PARTS} == pids

    code, output = ups("up", UPS_PREFECT_PORT=str(free_port()))
    assert code == 1
    assert "`ups down` first" in output

    psutil.Process(pids["worker"]).kill()
    code, output = ups("up")
    assert code == 0, output
    new = {part: stack.processes.running(part).pid for part in PARTS}
    assert {part for part in PARTS if new[part] != pids[part]} == {"worker"}

    code, output = ups("down")
    assert code == 0, output
    assert all(part in output for part in PARTS)
    assert not any(psutil.pid_exists(pid) for pid in new.values())
    assert ups("down") == (0, "nothing was running\n")


def test_a_busy_port_stops_up_before_anything_is_started(ups):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, output = ups("up", UPS_S3_PORT=str(port))
    assert code == 1
    assert f"port {port} on 127.0.0.1, wanted for the object store, is taken" in output
    assert not list(Stack.find().folder.glob("processes/*.json"))


def test_a_part_that_dies_while_it_starts_is_reported_with_its_last_words(ups):
    code, output = ups("up", RCLONE_TRANSFERS="nonsense")
    assert code == 1
    assert "object-store ended while it was starting" in output
    assert "nonsense" in output


def test_run_refuses_a_bad_config_before_anything_is_started(ups):
    code, output = ups("run", "-p", 'overrides={"latent.tokens": 7}')
    assert code == 1
    assert "latent.tokens: found 7" in output
    assert not Stack.find().folder.exists()
