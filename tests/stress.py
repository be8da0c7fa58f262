"""Cancels and kills runs at random moments, with servers of their own; no part of the tests.

    .venv/bin/python -m tests.stress cancel --rounds 10
    .venv/bin/python -m tests.stress kill --rounds 50
    .venv/bin/python -m tests.stress stream --rounds 8
    .venv/bin/python -m tests.stress pull --rounds 8

A line for each round, with what was wrong in it; exit code 1 if anything was.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import psutil
import torch

from deployments.layout import PROJECT_DIR
from tests.conftest import TINY_OVERRIDES, S3Server, serving_s3
from tests.live import LiveStack, wait_until
from tests.proxy import serving_proxy
from ups.config import SPLITS, dump_config, load_config
from ups.data.generate import generate
from ups.data.objectstore import ObjectStore
from ups.runs.folder import UNVERIFIED
from ups.runs.index import breakdown_of
from ups.training import checkpoint

CANCEL_S, END_S = 10.0, 600.0
SAVED_WITHIN_S = 1.5
HANDLE_S = 30.0  # a signal
WITHIN_S = {"cancel": 3.0, "kill": 8.0, "stream": 9.0, "pull": 9.0}
SLOW_S = 0.4  # of a request, or of 64 KiB
EPOCHS = {"cancel": 100_000, "kill": 40}  # for ever; a few seconds


class Stress:
    """A stack with a tiny config, and the deployment that is troubled."""

    def __init__(self, folder: Path, epochs: int) -> None:
        self.live = LiveStack(folder, {})
        self.runs_dir = folder / "runs"
        overrides = {
            **TINY_OVERRIDES,
            "runs_dir": str(self.runs_dir),
            "data.root": str(folder / "staged"),
            "data.sources": {split: [{"key": f"tiny/{split}.h5"}] for split in SPLITS},
            "data.generate.num_trajectories": {"train": 12, "val": 4, "test": 4},
            "training.latent_cache_dir": str(folder / "cache"),
            "stages.operator.epochs": 2,
        }
        config = folder / "tiny.yaml"
        config.write_text(dump_config(load_config("smoke", overrides)))
        done = self.live.ups("run", "--config", str(config))
        assert done.returncode == 0, done.stdout + done.stderr
        self.deployment = self.live.deployment("train-burgers/train-burgers")["id"]
        again = {"stages.operator.epochs": epochs}
        self.parameters = {"config": str(config), "overrides": again, "overwrite_cache": True}

        self.expected = None if epochs == EPOCHS["cancel"] else self.reference()

    def reference(self) -> float | None:
        """What a run scores that nobody troubles."""
        run_id = self.trigger()
        self.end_of(run_id)
        return self.score(run_id)

    def trigger(self) -> str:
        body = {"parameters": self.parameters}
        path = f"/deployments/{self.deployment}/create_flow_run"
        return str(self.live.ask("POST", path, body)["id"])

    def states(self, run_id: str) -> list[str]:
        """The names of the states that a run went through."""
        found = self.live.ask("GET", f"/flow_run_states/?flow_run_id={run_id}")
        return [state["name"] for state in sorted(found, key=lambda state: state["timestamp"])]

    def end_of(self, run_id: str) -> dict[str, Any]:
        """A run once it has ended; a busy machine takes its time."""
        ended = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
        wait_until(lambda: self.live.run(run_id)["state_type"] in ended, END_S, 0.5)
        return self.live.run(run_id)

    def is_slot_free(self) -> bool:
        found = self.live.deployment("train-burgers/train-burgers")["global_concurrency_limit"]
        return found["active_slots"] == 0

    def score(self, run_id: str) -> float | None:
        found = breakdown_of(self.runs_dir, UUID(run_id))
        return found.nrmse_rollout if found else None


def cancel(stress: Stress, after_s: float) -> list[str]:
    """Cancel a run so long after its trigger; returns what was wrong."""
    live, run_id = stress.live, stress.trigger()
    time.sleep(after_s)
    state = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
    live.ask("POST", f"/flow_runs/{run_id}/set_state", state)
    began = time.monotonic()
    while live.run(run_id)["state_type"] != "CANCELLED" and time.monotonic() - began < 30:
        time.sleep(0.25)
    took, states = time.monotonic() - began, stress.states(run_id)
    print(f"  {' → '.join(states)}, {took:.1f} s", flush=True)
    time.sleep(1)
    wrong = [f"{took:.1f} s until it was cancelled"] if took > CANCEL_S else []
    wrong += ["it showed as Crashed"] if "Crashed" in stress.states(run_id) else []
    return wrong + ([] if stress.is_slot_free() else ["its slot is not free"])


def kill(stress: Stress, after_s: float) -> list[str]:
    """Kill the process of a run so long after its trigger, and retry; returns what was wrong."""
    live, run_id = stress.live, stress.trigger()
    time.sleep(after_s)
    killed = [process.kill() for process in processes_of_runs(live)]
    first = stress.end_of(run_id)["state"]
    print(f"  {first['name']}: {first['message']}", flush=True)
    wrong = []
    if first["type"] != "COMPLETED":
        if killed and (first["type"] != "CRASHED" or "SIGKILL" not in first["message"]):
            wrong.append("it was killed, and does not say so")
        state = {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}}
        live.ask("POST", f"/flow_runs/{run_id}/set_state", state)
        live.wait(lambda: live.run(run_id)["state_type"] != first["type"])
        again = stress.end_of(run_id)["state"]
        if again["type"] != "COMPLETED":
            wrong.append(f"the retry ended {again['name']}: {again['message']}")
    if (score := stress.score(run_id)) != stress.expected:
        wrong.append(f"scored {score}, expected {stress.expected}")
    return wrong


def processes_of_runs(live: LiveStack) -> list[psutil.Process]:
    """Those that were forked for a run, by a keeper, which belongs to nobody of the stack."""
    warm = ["-m", "deployments.zygote", str(live.stack.folder / "warm.sock")]
    found = {p.pid: p for p in psutil.process_iter(["cmdline", "ppid"])}
    forks = {pid: p for pid, p in found.items() if (p.info["cmdline"] or [])[-3:] == warm}
    worker = live.stack.processes.running("worker")
    assert worker is not None
    keepers = {pid for pid, p in forks.items() if p.info["ppid"] not in {worker.pid, *forks}}
    return [p for p in forks.values() if p.info["ppid"] in keepers]


class Kill(NamedTuple):
    """Ends a run so long after its start, or after it has saved what is not verified yet."""

    number: signal.Signals
    after_s: float
    is_saved: bool

    @classmethod
    def drawn(cls, draw: random.Random, within_s: float) -> Kill:
        number = draw.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
        if draw.random() < 0.5:
            return cls(number, draw.uniform(0, SAVED_WITHIN_S), True)
        return cls(number, draw.uniform(1, within_s), False)

    def __str__(self) -> str:
        what = UNVERIFIED if self.is_saved else "the start"
        return f"{self.number.name} {self.after_s:.2f} s after {what}"

    def end(self, process: subprocess.Popen[bytes], place: Path) -> None:
        """Send it, unless the run ends before."""
        while self.is_saved and process.poll() is None and not list(place.rglob(UNVERIFIED)):
            time.sleep(0.05)
        with suppress(subprocess.TimeoutExpired):
            process.wait(self.after_s)
        process.send_signal(self.number)


class Streaming:
    """`ups train` on data that arrive slowly, in a folder of its own for each run."""

    def __init__(self, folder: Path, s3: S3Server, endpoint_url: str, *, is_shared: bool) -> None:
        """Upload the data; they are fetched from the endpoint.

        Args:
            is_shared: whether runs pull the latents that the first has pushed.
        """
        self.folder = folder
        self._shared = {"cache.remote": "s3://tiny/shared"} if is_shared else {}
        reached = {**s3.env, "AWS_ENDPOINT_URL_S3": endpoint_url}
        self.env = {**os.environ, **reached, "PDEBENCH_ROOT": ""}
        grid = {"grid_points": 256, "num_frames": 41, "t_end": 0.4}
        with s3.used(), closing(ObjectStore()) as client:
            for seed, (split, num) in enumerate({"train": 48, "val": 8, "test": 8}.items()):
                path = folder / f"{split}.h5"
                generate(path, num, "burgers1d", 0.02, seed=seed, **grid)
                client.upload(path, "tiny", f"tiny/{split}.h5")
        self.num_resumed = self.num_pulled = 0
        self.expected = self.weights("undisturbed", [])

    def weights(self, name: str, kills: Sequence[Kill]) -> Any:
        """The weights of a run that is ended at each of its starts, and then left alone."""
        place = self.folder / name
        place.mkdir()
        overrides = {
            **TINY_OVERRIDES,
            "runs_dir": str(place / "runs"),
            "data.root": str(place / "data"),
            "data.generate": None,
            "data.sources": {s: [{"bucket": "tiny", "key": f"tiny/{s}.h5"}] for s in SPLITS},
            "training.latent_cache_dir": str(place / "cache"),
            **self._shared,
        }
        config = place / "tiny.yaml"
        config.write_text(dump_config(load_config("smoke", overrides)))
        command = [sys.executable, "-m", "deployments.cli.app", "train", config, "--run-id", "mine"]
        for kill in (*kills, None):
            with (place / "output").open("a") as output:
                process = subprocess.Popen(
                    command, cwd=PROJECT_DIR, env=self.env, stdout=output, stderr=output
                )
            if kill is not None:
                kill.end(process, place)
            ended_with = process.wait(None if kill is None else HANDLE_S)
            print(f"  ended {ended_with}: {self._traces(place)}", flush=True)
        output_text = (place / "output").read_text()
        assert process.returncode == 0, output_text
        resumed = re.findall(rf"{UNVERIFIED} at epoch 1, step (\d+)", output_text)
        self.num_resumed += any(int(step) > 0 for step in resumed)
        self.num_pulled += "pulled from s3://tiny/shared" in output_text
        print(f"  resumed before the verdict at steps: {', '.join(resumed) or 'none'}", flush=True)
        (last,) = place.glob("runs/*-mine/checkpoints/last.pt")
        return checkpoint.load(last)

    def _traces(self, place: Path) -> str:
        """What it has left."""
        names = ("*.part", "building-*", "*.h5", "CURRENT", "*.pt")
        found = {name: len(list(place.rglob(name))) for name in names}
        return ", ".join(f"{count} {name}" for name, count in found.items() if count) or "nothing"


def stream(streaming: Streaming, name: str, kills: Sequence[Kill]) -> list[str]:
    """End a run in which data arrive, several times; what was wrong."""
    found = streaming.weights(name, kills)
    return [
        f"other weights: {part}.{key}"
        for part in ("model", "ema")
        for key, value in streaming.expected[part].items()
        if not torch.equal(value, found[part][key])
    ]


def streams(
    rounds: int, within_s: float, draw: random.Random, *, is_shared: bool
) -> Iterator[list[str]]:
    """What was wrong in each round."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "s3").mkdir()
        server = serving_s3(folder / "s3", folder / "log")
        with server as s3, serving_proxy(s3.endpoint_url) as handler:
            handler.proxy.faults.delay_s = SLOW_S
            streaming = Streaming(folder, s3, handler.proxy.url, is_shared=is_shared)
            for number in range(1, rounds + 1):
                kills = [Kill.drawn(draw, within_s) for _ in range(draw.randint(1, 3))]
                print(f"{number}: stream, {', '.join(map(str, kills))}", flush=True)
                yield stream(streaming, str(number), kills)
            if is_shared and streaming.num_pulled < rounds:
                yield [f"{streaming.num_pulled} of {rounds} have pulled"]
            print(f"{streaming.num_resumed} went on at a step before the verdict", flush=True)
            if streaming.num_resumed == 0 and not is_shared:
                yield ["none went on at a step before the verdict"]


def troubled(what: str, rounds: int, within_s: float, draw: random.Random) -> Iterator[list[str]]:
    """What was wrong in each round."""
    trouble = {"cancel": cancel, "kill": kill}[what]
    with tempfile.TemporaryDirectory() as folder:
        stress = Stress(Path(folder), EPOCHS[what])
        try:
            for number in range(1, rounds + 1):
                after_s = draw.uniform(0, within_s)
                print(f"{number}: {what} after {after_s:.2f} s", flush=True)
                yield trouble(stress, after_s)
        finally:
            stress.live.ups("down")
            stress.live.api.close()


def main() -> None:
    plain = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("what", choices=WITHIN_S)
    parser.add_argument("--rounds", type=int, default=10)
    within = ", ".join(f"{what} {seconds:.0f}" for what, seconds in WITHIN_S.items())
    parser.add_argument("--within", type=float, help=f"seconds from the start ({within})")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    within_s, draw = given.within or WITHIN_S[given.what], random.Random(given.seed)
    if given.what in ("stream", "pull"):
        rounds = streams(given.rounds, within_s, draw, is_shared=given.what == "pull")
    else:
        rounds = troubled(given.what, given.rounds, within_s, draw)
    bad = 0
    for wrong in rounds:
        bad += bool(wrong)
        print(f"  {'; '.join(wrong) or 'as it should be'}", flush=True)
    print(f"{given.rounds - bad} of {given.rounds} as they should be")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
