"""Fixtures for every folder: a real S3 server on loopback, and a tiny data set of our own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest

from deployments.layout import PROJECT_DIR
from ups.config import SPLITS, RunConfig, load_config
from ups.data.sources import Staged, stage

Ups = Callable[..., tuple[int, str]]


@dataclass(frozen=True)
class S3Server:
    endpoint_url: str
    access_key: str
    secret_key: str
    directory: Path  # a folder is a bucket, a file in it an object; the server keeps what it read,
    #                  so look, but change objects through S3 alone

    @property
    def env(self) -> dict[str, str]:
        """What a process needs to reach it, and nothing that points elsewhere."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """`rclone serve s3` on a free port; tests use it with `s3.env` in the environment."""
    directory = tmp_path_factory.mktemp("s3")
    log = tmp_path_factory.mktemp("s3-log") / "rclone.log"
    access_key, secret_key = secrets.token_hex(8), secrets.token_hex(16)
    rclone = Path(sys.executable).with_name("rclone")
    with log.open("wb") as output:
        server = subprocess.Popen(
            [rclone, "serve", "s3", directory, "--addr", "127.0.0.1:0", "--config", os.devnull],
            env={**os.environ, "RCLONE_AUTH_KEY": f'"{access_key},{secret_key}"'},
            stdout=output,
            stderr=output,
        )
    try:
        yield S3Server(_endpoint(server, log), access_key, secret_key, directory)
    finally:
        server.terminate()
        server.wait(timeout=10)


def _endpoint(server: subprocess.Popen[bytes], log: Path) -> str:
    """The address that the server says it listens on."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and server.poll() is None:
        if found := re.search(r"Starting s3 server on \[(http://[\d.]+:\d+)/", log.read_text()):
            return found[1]
        time.sleep(0.02)
    pytest.fail(f"the S3 server did not start: {log.read_text()}")


@pytest.fixture(scope="session")
def free_ports() -> Callable[[int], list[int]]:
    """`free_ports(count)`: ports of 127.0.0.1 on which nothing listens."""

    def find(count: int) -> list[int]:
        with contextlib.ExitStack() as stack:
            probes = [stack.enter_context(socket.socket()) for _ in range(count)]
            for probe in probes:
                probe.bind(("127.0.0.1", 0))
            return [probe.getsockname()[1] for probe in probes]

    return find


@pytest.fixture(scope="session")
def ups_process() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`ups_process("up", UPS_S3_PORT="9001")`: the command, on the stack of the environment."""

    def run(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "deployments.cli", *arguments]
        env = {**os.environ, **changes}
        return subprocess.run(command, env=env, cwd=PROJECT_DIR, capture_output=True, text=True)

    return run


@pytest.fixture(scope="session")
def ups(ups_process: Callable[..., subprocess.CompletedProcess[str]]) -> Ups:
    """The same: exit code and output."""

    def run(*arguments: str, **changes: str) -> tuple[int, str]:
        done = ups_process(*arguments, **changes)
        return done.returncode, done.stdout + done.stderr

    return run


os.environ["OMP_NUM_THREADS"] = "1"  # tiny models: threads would only wait for each other

TINY = {"train": 20, "val": 5, "test": 6}
TINY_OVERRIDES = {
    "data.grid_points": 256,
    "latent.tokens": 8,
    "latent.dim": 16,
    "operator.hidden_dim": 32,
    "training.batch_size": 6,
    "training.encode_batch_size": 4,
    "training.time_stride": 4,
    "stages.operator.epochs": 3,
    "evaluation.batch_size": 4,
}


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `burgers1d_{split}.h5` from the project's own solver: 41 frames, 256 points."""
    from ups.data.burgers import generate

    root = tmp_path_factory.mktemp("tiny")
    for seed, (split, num) in enumerate(TINY.items()):
        path = root / f"burgers1d_{split}.h5"
        generate(path, num, nu=0.02, seed=seed, grid_points=256, num_frames=41, t_end=0.4)
    return root


@pytest.fixture
def tiny_config(tiny_data: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    """`tiny_config(**overrides)`: the smoke config on the tiny local files; `__` stands for `.`."""

    def make(**overrides: object) -> RunConfig:
        folders = {
            "runs_dir": str(tmp_path / "runs"),
            "data.root": str(tiny_data),
            "data.sources": None,
            "data.generate": None,
            "training.latent_cache_dir": str(tmp_path / "cache"),
        }
        dotted = {key.replace("__", "."): value for key, value in overrides.items()}
        return load_config("smoke", {**TINY_OVERRIDES, **folders, **dotted})

    return make


MIXED = {
    "burgers1d": {"train": 20, "val": 5, "test": 6},  # the tiny files
    "burgers1d_nu0.1": {"train": 7, "val": 3, "test": 4},
    "advection1d": {"train": 12, "val": 4, "test": 3},
}


@pytest.fixture(scope="session")
def mixed_data(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny files, and as many frames of Burgers at ν = 0.1 and of advection at β = 0.5."""
    from ups.data import advection, burgers

    root = tmp_path_factory.mktemp("mixed")
    size = {"grid_points": 256, "num_frames": 41, "t_end": 0.4}
    for seed, split in enumerate(SPLITS, 10):
        name = f"burgers1d_{split}.h5"
        (root / name).hardlink_to(tiny_data / name)
        path, num = root / f"burgers1d_nu0.1_{split}.h5", MIXED["burgers1d_nu0.1"][split]
        burgers.generate(path, num, nu=0.1, seed=seed, **size)
        path, num = root / f"advection1d_{split}.h5", MIXED["advection1d"][split]
        advection.generate(path, num, beta=0.5, seed=seed, **size)
    return root


@pytest.fixture
def mixed_config(mixed_data: Path, tiny_config) -> Callable[..., RunConfig]:
    """`mixed_config(**overrides)`: the tiny config with all tasks, or `data__task=[…]` of them."""

    def make(**overrides: object) -> RunConfig:
        given = {"data__root": str(mixed_data), "data__task": list(MIXED)}
        given |= {"evaluation__num_examples": 1, **overrides}  # a picture takes a while
        return tiny_config(**given)

    return make


@pytest.fixture
def stage_tasks() -> Callable[[RunConfig], dict[str, dict[str, list[Staged]]]]:
    """Task → split → its files."""
    return lambda config: {
        name: {split: stage(alone, split, None) for split in SPLITS}
        for name, alone in config.by_task().items()
    }


@pytest.fixture
def stage_all() -> Callable[[RunConfig], dict[str, list[Staged]]]:
    return lambda config: {split: stage(config, split, None) for split in SPLITS}


@pytest.fixture
def no_wandb_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights & Biases as on a machine where nobody has logged in."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb-home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


@pytest.fixture
def read_wandb() -> Callable[[Path], SimpleNamespace]:
    """`read_wandb(run_dir)`: what the one offline run in a run's folder recorded.

    Its file is a LevelDB log, blocks of 32 KiB with pieces of protobuf records, after a header.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    def records(path: Path) -> Iterator[Record]:
        content, at, record = path.read_bytes(), 7, b""
        assert content[:4] == b":W&B"
        while at < len(content):
            if (left := 32768 - at % 32768) < 7:
                at += left
                continue
            _crc, length, kind = struct.unpack_from("<IHB", content, at)
            record += content[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):  # whole, or the last piece
                yield Record.FromString(record)
                record = b""

    def read(run_dir: Path) -> SimpleNamespace:
        (path,) = run_dir.glob("wandb/offline-run-*/*.wandb")
        found = SimpleNamespace(history=[], config={}, summary={}, exit_code=None, path=path)
        found.num_stats = 0
        for record in records(path):
            found.num_stats += record.HasField("stats")
            for item in record.run.config.update:
                found.config[item.key] = json.loads(item.value_json)
            for item in record.summary.update:
                found.summary["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
            if record.HasField("history"):
                items = record.history.item
                found.history.append(
                    {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}
                )
            if record.HasField("exit"):
                found.exit_code = record.exit.exit_code
        return found

    return read


BUCKET = "tiny"


@pytest.fixture(scope="session")
def bucket(s3: S3Server, tiny_data: Path) -> str:
    """The tiny data set as objects with a manifest."""
    from ups.data.objectstore import ObjectStore

    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.env.items():
            patch.setenv(name, value)
        store = ObjectStore()
        for split in SPLITS:
            name = f"burgers1d_{split}.h5"
            store.upload(tiny_data / name, BUCKET, f"burgers1d/{name}")
        store.close()
    return BUCKET


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API URL of a server with an empty database; no heartbeats, which cost a second a flow."""
    from prefect import settings
    from prefect.events.worker import EventsWorker
    from prefect.server.api.server import SubprocessASGIServer

    home = tmp_path_factory.mktemp("prefect")
    changes = {
        settings.PREFECT_HOME: home,
        settings.PREFECT_SERVER_DATABASE_CONNECTION_URL: f"sqlite+aiosqlite:///{home}/test.db",
        settings.PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: False,
        settings.PREFECT_SERVER_ANALYTICS_ENABLED: False,
        settings.PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
        settings.PREFECT_LOGGING_TO_API_ENABLED: False,
    }
    with settings.temporary_settings(changes):
        server = SubprocessASGIServer()
        server.start(timeout=90)
        try:
            with settings.temporary_settings({settings.PREFECT_API_URL: server.api_url}):
                yield server.api_url
                EventsWorker.drain_all()
        finally:
            server.stop()


class FakeNvml:
    """Stands in for the module `pynvml` where there is no GPU: the GPUs `uuids`, as told.

    Attributes:
        busy: percent; the readings in turn, the last one again and again.
        power_mw: None: the GPU does not say.
        fails_after: readings after which the GPU is lost.
        asked: the GPUs that were asked for their utilisation.
    """

    NVMLError = pynvml.NVMLError

    def __init__(self, uuids=("GPU-aa01", "GPU-bb02"), busy=(0, 80), power_mw=250_000) -> None:
        self.uuids, self.busy, self.power_mw = uuids, list(busy), power_mw
        self.fails_after: int | None = None
        self.answers = threading.Event()
        self.answers.set()
        self.asked: list[int] = []

    def nvmlInit(self):
        self.answers.wait()

    def nvmlShutdown(self):
        pass

    def nvmlDeviceGetCount(self):
        return len(self.uuids)

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetUUID(self, handle):
        return self.uuids[handle]

    def nvmlDeviceGetUtilizationRates(self, handle):
        if self.fails_after is not None and len(self.asked) >= self.fails_after:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        self.asked.append(handle)
        return SimpleNamespace(gpu=self.busy.pop(0) if len(self.busy) > 1 else self.busy[0])

    def nvmlDeviceGetMemoryInfo(self, _):
        return SimpleNamespace(used=3_000_000_000)

    def nvmlDeviceGetPowerUsage(self, _):
        if self.power_mw is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return self.power_mw


@pytest.fixture
def make_nvml() -> type[FakeNvml]:
    return FakeNvml
