"""Boot: from a run's trigger to its first task run: cold, warm, and with Prefect's defaults."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import yaml

from benchmarks.harness import Comparison, Contender, Sample, alternate
from benchmarks.settings import Settings
from deployments import prefect_api as api
from deployments.layout import BIN_DIR, PROJECT_DIR, Stack
from ups.config import load_config
from ups.runs import find_run_dir

DEPLOYMENT = "train-burgers"
PLAIN = "plain"  # pool and deployment without anything of ours
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
RUN_TIMEOUT_S = 120
DEFAULTS_REPEATS = 3
POLL_S = 0.3
WARM_ATTEMPTS = 3
BUSY, BUSY_S = 503, 10.0  # SQLite refuses a write beside another one: nothing was created
QUIET_S = 0.5  # between two runs
# The first tasks find no data and fail the run: nothing after the boot is waited for.
NO_DATA, MESSAGE = {"data.sources": None, "features.warm_up": False}, "looked for burgers1d_"
NOTES = [
    "Boot: queue + boot of each run's own breakdown, from the run's creation over the API to the "
    "start of its first task run, which finds no data and ends the run; on a stack of its own, one "
    "run at a time.",
    "Prefect's defaults: its own worker (polls every 10 s) on a pool of its own, the same flow "
    f"without a command or an event; {DEFAULTS_REPEATS} repeats, as each takes a poll. Where in "
    "the poll's interval the run comes is left to chance.",
]


def run(settings: Settings) -> Iterator[Comparison]:
    folder = settings.folder / "boot"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with live_stack(folder, _write_config(folder), ends=MESSAGE) as live:
        contenders = [
            Contender("ours, warm", "ours", lambda: live.boot("warm"), _pause),
            Contender("ours, cold", "peer", lambda: live.boot("cold"), _pause),
        ]
        results = alternate(contenders, settings.repeats, warm_ups=0)
        with _plain_worker(live):
            plain = Contender("Prefect's defaults", "peer", lambda: live.boot("plain"), _pause)
            results += alternate([plain], min(DEFAULTS_REPEATS, settings.repeats), warm_ups=0)
        yield Comparison(
            section="boot",
            phase="trigger → first task run",
            unit="s",
            better="lower",
            results=results,
            notes=[
                *NOTES,
                "Asked for on an idle machine: warm at most 1 s, cold at most 2 s.",
                f"Warm starts that came out cold and were done again: {live.cold_instead}.",
            ],
        )


class LiveStack:
    """The benchmark's own stack: triggers runs and reads what they say about themselves.

    Args:
        ends: what a run says that is to fail; None: runs are to complete.
    """

    def __init__(self, folder: Path, config: Path, ends: str | None = None) -> None:
        self.folder, self.config, self.ends, self.stack = folder, config, ends, Stack.find()
        self.client = httpx.Client(base_url=self.stack.api_url, timeout=30)
        self.cold_instead = 0  # starts that were to be warm

    def boot(self, mode: str) -> Sample:
        """Run once; queue and boot in seconds."""
        seconds = {p["phase"]: p["seconds"] for p in self.run_once(mode)["phases"]}
        parts = {phase: seconds[phase] for phase in ("queue", "boot")}
        return Sample(sum(parts.values()), {f"{phase} s": s for phase, s in parts.items()})

    def run_once(self, mode: str) -> dict[str, Any]:
        """Run to the end; the breakdown. Mode: warm, cold or plain.

        A warm start that comes out cold, because the process kept ready is not (the project's
        files have changed, say), is counted and done again.
        """
        for _ in range(WARM_ATTEMPTS):
            breakdown = self._run(mode)
            if mode != "warm" or breakdown["start_mode"] == "warm":
                return breakdown
            self.cold_instead += 1
            socket_path = self.stack.folder / "warm.sock"
            _wait(socket_path.exists, RUN_TIMEOUT_S, "the process kept ready")
        raise RuntimeError(f"{WARM_ATTEMPTS} warm starts came out cold")

    def _run(self, mode: str) -> dict[str, Any]:
        name = PLAIN if mode == "plain" else DEPLOYMENT
        found = self._json("GET", f"/deployments/name/train-burgers/{name}")
        body: dict[str, Any] = {"parameters": {"config": str(self.config)}}
        if mode != "plain":
            body["job_variables"] = {"env": {"UPS_START_MODE": mode}}
        created = self._json("POST", f"/deployments/{found['id']}/create_flow_run", body)
        run_id = created["id"]
        self._wait_until_final(run_id)
        folder = find_run_dir(self.folder / "runs", UUID(run_id))
        if folder is None:
            raise RuntimeError(f"flow run {run_id} left no folder in {self.folder / 'runs'}")
        breakdown: dict[str, Any] = json.loads((folder / "breakdown.json").read_text())
        return breakdown

    def _wait_until_final(self, run_id: str) -> None:
        deadline = time.monotonic() + RUN_TIMEOUT_S
        while time.monotonic() < deadline:
            state = api.read_run(self.client, run_id)["state"]
            if state["type"] in FINAL:
                wanted = "FAILED" if self.ends else "COMPLETED"
                if state["type"] != wanted or (self.ends or "") not in (state["message"] or ""):
                    raise RuntimeError(f"the run ended {state['name']}: {state['message']}")
                return
            time.sleep(POLL_S)
        raise RuntimeError(f"the run did not end in {RUN_TIMEOUT_S} s")

    def add_plain_deployment(self) -> None:
        """The same flow in a pool for Prefect's own worker, without a command of ours."""
        api.create_pool(self.client, PLAIN, "Prefect's own worker, for the benchmark")
        ours = self._json("GET", f"/deployments/name/train-burgers/{DEPLOYMENT}")
        kept = ("flow_id", "entrypoint", "path", "pull_steps", "parameters")
        record = {key: ours[key] for key in kept if ours.get(key) is not None}
        record |= {"name": PLAIN, "work_pool_name": PLAIN}
        record["job_variables"] = {"working_dir": str(PROJECT_DIR)}
        self._json("POST", "/deployments/", record)

    def _json(self, method: str, path: str, body: object = None) -> Any:
        deadline = time.monotonic() + BUSY_S
        while True:
            answer = self.client.request(method, path, json=body)
            if answer.status_code != BUSY or time.monotonic() > deadline:
                return answer.raise_for_status().json()
            time.sleep(POLL_S)


@contextlib.contextmanager
def live_stack(folder: Path, config: Path, ends: str | None = None) -> Iterator[LiveStack]:
    """A stack in a folder; stopped at the end."""
    ports = _free_ports(2)
    changes = {
        "UPS_STACK_DIR": str(folder / ".stack"),
        "UPS_PREFECT_PORT": str(ports[0]),
        "UPS_S3_PORT": str(ports[1]),
    }
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        _ups("up")
        live = LiveStack(folder, config, ends)
        yield live
        live.client.close()
    finally:
        _ups("down")
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@contextlib.contextmanager
def _plain_worker(live: LiveStack) -> Iterator[None]:
    """`prefect worker start` with Prefect's own settings."""
    live.add_plain_deployment()
    env = {**live.stack.prefect_env(), **live.stack.store_env()}
    for name in ("PREFECT_WORKER_QUERY_SECONDS", "PREFECT_WORKER_PREFETCH_SECONDS"):
        env.pop(name, None)
    command = [str(BIN_DIR / "prefect"), "worker", "start", "--pool", PLAIN]
    with (live.folder / "plain-worker.log").open("wb") as log:
        worker = subprocess.Popen(
            command, env=env, cwd=PROJECT_DIR, stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
    try:
        _wait(lambda: bool(_online(live)), 60, "Prefect's worker to come online")
        yield
    finally:
        worker.send_signal(signal.SIGTERM)
        try:
            worker.wait(20)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def _online(live: LiveStack) -> list[str]:
    return api.other_workers(live.client, PLAIN)


def _wait(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {timeout_s:.0f} s in vain for {what}")
        time.sleep(0.2)


def _pause() -> None:
    """The run before leaves its last states with the server, and its slot."""
    time.sleep(QUIET_S)


def _write_config(folder: Path) -> Path:
    places = {
        "runs_dir": str(folder / "runs"),
        "data.root": str(folder / "staged"),
        "training.latent_cache_dir": str(folder / "cache"),
    }
    path = folder / "no-data.yaml"
    config = load_config("smoke", {**NO_DATA, **places})
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path


def _ups(*arguments: str) -> None:
    command = [sys.executable, "-m", "deployments.cli", *arguments]
    done = subprocess.run(command, cwd=PROJECT_DIR, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ups {arguments[0]}: {(done.stdout + done.stderr).strip()[-300:]}")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
