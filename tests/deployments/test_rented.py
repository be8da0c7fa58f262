"""The job on a rented machine, in parts; the whole of it runs in tests/vast."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from deployments import prefect_api as api
from deployments import rented
from deployments.layout import PROJECT_DIR
from deployments.rented import Heartbeat, Job, RentedError, Stopped, patiently


@pytest.fixture
def heart(tmp_path, monkeypatch):
    monkeypatch.setattr(rented, "LOOK_S", 0.0)
    (tmp_path / "data").mkdir()
    stores = (tmp_path / "data", tmp_path / "nowhere")
    return Heartbeat(tmp_path / "beat", stores, tmp_path / "runs")


def beats(heart):
    """Whether a look finds that something has moved."""
    heart.path.unlink(missing_ok=True)
    heart.look()
    return heart.path.exists()


def test_bytes_that_arrive_are_progress_and_silence_is_none(heart, tmp_path):
    assert not beats(heart)
    file = tmp_path / "data" / "deep" / "file"
    file.parent.mkdir()
    file.write_bytes(b"1")
    assert beats(heart)
    assert not beats(heart)
    os.utime(file, (time.time() + 5, time.time() + 5))  # written again, in place
    assert beats(heart)


def test_the_disk_is_looked_at_now_and_then_only(tmp_path):
    heart = Heartbeat(tmp_path / "beat", (tmp_path,), tmp_path / "runs")
    (tmp_path / "file").touch()
    assert not beats(heart)


@pytest.mark.parametrize(
    ("name", "is_progress"),
    [
        ("run.log", True),
        ("metrics.jsonl", True),
        ("checkpoints/last.pt", True),
        ("wandb/offline-run-1/run-1.wandb", False),
        ("tensorboard/events.out.tfevents.1", False),
    ],
)
def test_in_a_runs_folder_only_what_the_run_itself_writes_is_progress(
    heart, tmp_path, name, is_progress
):
    file = tmp_path / "runs" / "20260101-120000-smoke-aa" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(b"1")
    assert beats(heart) == is_progress


@pytest.fixture
def new_job(tmp_path):
    return Job({}, state=tmp_path, installed_at=0.0, mount=tmp_path, keep=False)


def test_the_folders_are_those_that_the_run_was_given(new_job, tmp_path):
    assert new_job._stores == (tmp_path / "data",)
    new_job.parameters = {"overrides": {"runs_dir": "/a", "training.latent_cache_dir": "/b"}}
    assert new_job._runs_dir == Path("/a")
    assert new_job._stores == (tmp_path / "data", Path("/b"))


@pytest.fixture
def job(new_job, prefect_server, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    monkeypatch.setenv("CONTAINER_ID", "4712")
    yield new_job
    new_job.client.close()


def test_the_worker_takes_one_run_at_a_time_and_others_only_on_a_machine_that_is_kept(job):
    arguments = job.worker_arguments()
    assert arguments[:5] == ["gpu", "--name", "rented-4712", "--limit", "1"]
    assert arguments[-2:] == ["--queue", "rented-4712"]
    job.keep = True
    assert job.worker_arguments()[-4:] == ["--queue", "rented-4712", "--queue", "default"]


def running_flow_run(client):
    flow = client.post("/flows/", json={"name": "any"}).json()
    body = {"flow_id": flow["id"], "state": {"type": "RUNNING"}}
    return client.post("/flow_runs/", json=body).json()["id"]


def test_a_run_that_the_watchdog_ends_is_crashed_on_the_server_with_the_reason(job, tmp_path):
    job.run_id = running_flow_run(job.client)
    (tmp_path / "why").write_text("no progress for 1800 s\n")
    job._end_run(Stopped("SIGTERM"))
    state = api.read_run(job.client, job.run_id)["state"]
    assert state["type"] == "CRASHED"
    assert state["message"] == "the machine is stopped: no progress for 1800 s"


def test_a_run_of_which_the_server_shows_nothing_new_gives_no_beat(job, monkeypatch):
    looks, beats = [], []
    monkeypatch.setattr(rented, "POLL_S", 0.01)
    monkeypatch.setattr(Heartbeat, "beat", lambda _: beats.append(len(looks)))
    job.processes = SimpleNamespace(
        running=lambda name: looks.append(name) or len(looks) <= 8, log_tail=str, log_path=str
    )
    run_id = running_flow_run(job.client)
    with pytest.raises(RentedError, match="the worker ended before the run"):
        job._follow(run_id)
    assert len(looks) > 8
    assert beats == [0]  # that it is Running


def test_a_run_that_has_ended_stays_as_it_is(job):
    job.run_id = running_flow_run(job.client)
    done = {"state": {"type": "COMPLETED", "name": "Completed"}, "force": True}
    job.client.post(f"/flow_runs/{job.run_id}/set_state", json=done)
    job._end_run(RentedError("later"))
    assert api.read_run(job.client, job.run_id)["state"]["type"] == "COMPLETED"


def test_a_trigger_that_is_repeated_gives_the_same_run(job):
    api.create_pool(job.client, "gpu", "for tests")
    flow = job.client.post("/flows/", json={"name": "any"}).json()
    deployment = {"name": "repeat", "flow_id": flow["id"], "work_pool_name": "gpu"}
    number = job.client.post("/deployments/", json=deployment).json()["id"]
    runs = {api.create_run(job.client, number, {}, "rented-4712", "a key") for _ in range(2)}
    assert len(runs) == 1


def test_a_server_that_refuses_is_told_at_once(job):
    with pytest.raises(RentedError, match=r"refuses GET .*/flow_runs/none: HTTP 4\d\d: "):
        patiently(lambda: api.read_run(job.client, "none"))


def test_a_server_that_is_busy_is_asked_again(monkeypatch):
    monkeypatch.setattr(rented, "POLL_S", 0.01)
    answers = [503, 503, 200]  # as Prefect's own answers where SQLite is busy
    transport = httpx.MockTransport(lambda request: httpx.Response(answers.pop(0)))
    with httpx.Client(transport=transport, base_url="http://x") as client:
        assert patiently(lambda: client.get("/").raise_for_status()).status_code == 200


def test_a_job_that_waits_for_the_server_ends_on_sigterm_and_leaves_nothing(tmp_path):
    command = [sys.executable, "-m", "deployments.rented", "--parameters", "{}", "--since", "0"]
    command += ["--state", tmp_path, "--mount", tmp_path]
    env = {**os.environ, "PREFECT_API_URL": "http://127.0.0.1:9/api", "CONTAINER_ID": "4713"}
    process = subprocess.Popen(command, env=env, cwd=PROJECT_DIR, stdout=subprocess.PIPE, text=True)
    with process:
        assert "waiting for the Prefect server at 127.0.0.1:9" in process.stdout.readline()
        worker = json.loads((tmp_path / "processes" / "worker.json").read_text())["pid"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 143
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


LOGIN = {"PREFECT_API_AUTH_STRING": "a:b"}


@pytest.mark.parametrize(
    ("env", "header"),
    [
        ({}, {}),
        ({"PREFECT_API_KEY": "k"}, {"Authorization": "Bearer k"}),
        (LOGIN, {"Authorization": "Basic YTpi"}),
        ({**LOGIN, "PREFECT_API_KEY": "k"}, {"Authorization": "Basic YTpi"}),
    ],
)
def test_the_server_is_asked_with_the_login_that_prefect_itself_would_use(env, header):
    assert api.authorization(env) == header


def test_a_missing_address_is_said(new_job, monkeypatch):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with pytest.raises(RentedError, match="PREFECT_API_URL is not set"):
        new_job.client  # noqa: B018
