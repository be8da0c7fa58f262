"""One contender of `stream`: a process from its start to its first step, and what it found."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from speed import inputs
from speed.harness import Sample
from speed.link import Link
from speed.s3 import BUCKET, Server
from speed.settings import Settings
from speed.stream_inputs import FIELD, DataSet
from speed.stream_peers import Spec
from speed.worker import PROJECT_DIR
from ups.config import load_config
from ups.runs.breakdown import Breakdown

T = TypeVar("T")
CONFIG = "smoke"
TIME_STRIDE = 20  # half of the steps of the config's 10, so that an epoch is short
TIMEOUT_S, END_S, POLL_S = 300, 5, 0.05
IDLE, WAITED = "idle s", "waited s"


@dataclass(frozen=True, slots=True)
class Job:
    """One data set over one link, which all contenders train on."""

    settings: Settings
    server: Server
    link: Link
    data_set: DataSet
    is_whole_epoch: bool

    @property
    def folder(self) -> Path:
        return self.settings.folder / "stream"

    @property
    def log(self) -> Path:
        """What the process of a contender says."""
        return self.folder / "log"

    @property
    def place(self) -> str:
        return f"{self.data_set.size}, {self.link.name}"


def changes(job: Job, stream: str) -> dict[str, object]:
    """What a run of ours changes of its config, with `features.stream` so."""
    sources = {split: [{"key": job.data_set.key(split)}] for split in ("train", "val", "test")}
    return {
        **inputs.run_places(job.folder),
        "data.bucket": BUCKET,
        "data.sources": sources,
        "data.generate": None,
        "data.grid_points": job.data_set.shape[2],
        "features.stream": stream,
        "training.time_stride": TIME_STRIDE,
        "stages.operator.epochs": 1,
        "evaluation.num_examples": 1,
    }


def sets(changes: Mapping[str, object]) -> list[str]:
    """The same as options of a command."""
    return [part for name, value in changes.items() for part in ("--set", f"{name}={_json(value)}")]


def ups_train(job: Job, stream: str, more: Mapping[str, object] | None = None) -> Sample:
    """Seconds from the start of `ups train` to its first step, with `features.stream` so.

    Args:
        more: that it changes of its config.
    """
    options = sets({**changes(job, stream), **(more or {})})

    def found() -> Breakdown | None:
        file = next((job.folder / "runs").glob(f"*/{Breakdown.FILE}"), None)
        breakdown = Breakdown.load(file.parent) if file else None
        is_done = breakdown and not (job.is_whole_epoch and breakdown.idle_s is None)
        return breakdown if is_done else None

    started_at = time.time()
    command = [sys.executable, "-m", "deployments.cli.app", "train", CONFIG, *options]
    with started(job, command) as process:
        breakdown = wait_for(process, found, job)
    assert breakdown.ttfs_s is not None
    first_step_at = breakdown.triggered_at + breakdown.ttfs_s
    idle = {IDLE: breakdown.idle_s, WAITED: breakdown.waited_s} if job.is_whole_epoch else {}
    return Sample(first_step_at - started_at, {k: v for k, v in idle.items() if v is not None})


def peer(job: Job, kind: str, python: Path) -> Sample:
    """Seconds from the start of a peer's process to its first step."""
    pairs = load_config(CONFIG).training.pairs_per_step
    assert pairs is not None
    num_frames = -(-job.data_set.shape[1] // TIME_STRIDE)
    file = job.folder / "found.json"
    downloads, scratch = job.folder / "downloads", job.folder / "tmp"
    downloads.mkdir()
    scratch.mkdir()
    env = {
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "TMPDIR": str(scratch),  # where Mosaic keeps its locks
    }
    spec = Spec(
        kind=kind,
        bucket=BUCKET,
        prefix=job.data_set.prefix,
        folder=str(downloads),
        field=FIELD,
        num_points=job.data_set.shape[2],
        stride=TIME_STRIDE,
        batch_size=max(1, pairs // (num_frames - 1)),
        started_at=time.time(),
        is_whole_epoch=job.is_whole_epoch,
        found=str(file),
    )
    command = [str(python), "-m", "speed.stream_peers", json.dumps(asdict(spec))]
    with started(job, command, **env) as process:
        found = wait_for(process, lambda: _read(file), job)
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_S)  # in the end Mosaic removes its shared memory
    extras = {IDLE: found["idle_s"], WAITED: found["waited_s"]} if job.is_whole_epoch else {}
    return Sample(found["first_step_at"] - spec.started_at, extras)


def _read(file: Path) -> dict[str, float] | None:
    return json.loads(file.read_text()) if file.exists() else None


def _json(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@contextmanager
def started(job: Job, command: Sequence[str], **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process on the clients' side of the link; what is left of it in the end is killed."""
    environment: Mapping[str, str] = {**os.environ, **job.server.env(job.link.url), **env}
    # Without it each process would compile all that it imports.
    environment = {k: v for k, v in environment.items() if k != "PYTHONDONTWRITEBYTECODE"}
    with job.log.open("wb") as output:
        process = subprocess.Popen(
            [*job.link.prefix, *command],
            cwd=PROJECT_DIR,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):  # all of them have ended
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(process: subprocess.Popen[bytes], found: Callable[[], T | None], job: Job) -> T:
    """What is found once it is there.

    Raises:
        RuntimeError: the process ends before that, or takes too long.
    """
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        has_ended = process.poll() is not None
        if (result := found()) is not None:
            return result
        if has_ended:
            said = job.log.read_text(errors="replace").strip()[-300:]
            raise RuntimeError(f"ended with exit code {process.returncode}: {said}")
        time.sleep(POLL_S)
    raise RuntimeError(f"no first step, or end of epoch 1, after {TIMEOUT_S} s")
