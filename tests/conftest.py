"""Fixtures for every folder: an S3 server on loopback, and a tiny data set of our own."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ups.config import SPLITS, RunConfig, dump_config, load_config
from ups.data.sources import Staged, stage

pytest_plugins = (
    "tests.collector",
    "tests.disks",
    "tests.live",
    "tests.order",
    "tests.proxy",
    "tests.runner",
    "tests.stand_ins",
)


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

    @contextmanager
    def used(self) -> Iterator[None]:
        """It is the S3 server of this process meanwhile."""
        with pytest.MonkeyPatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("AWS_")]:
                patch.delenv(name)
            for name, value in self.env.items():
                patch.setenv(name, value)
            yield


@contextmanager
def serving_s3(directory: Path, log: Path) -> Iterator[S3Server]:
    """`rclone serve s3` on a free port."""
    access_key, secret_key = secrets.token_hex(8), secrets.token_hex(16)
    rclone = Path(sys.executable).with_name("rclone")
    serve = [rclone, "serve", "s3", directory, "--addr", "127.0.0.1:0", "--config", os.devnull]
    with log.open("wb") as output:
        server = subprocess.Popen(
            serve,
            env={**os.environ, "RCLONE_AUTH_KEY": f'"{access_key},{secret_key}"'},
            stdout=output,
            stderr=output,
        )
    try:
        yield S3Server(_endpoint(server, log), access_key, secret_key, directory)
    finally:
        server.terminate()
        server.wait(timeout=10)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Tests use it with `s3.env` in the environment."""
    log = tmp_path_factory.mktemp("s3-log") / "rclone.log"
    with serving_s3(tmp_path_factory.mktemp("s3"), log) as server:
        yield server


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A server that answers as AWS does: of conditions, among others. It holds all in memory."""
    command = shutil.which(
        "moto_server", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    )
    if command is None:
        pytest.skip("moto_server is not installed (the extra dev has it)")
    folder = tmp_path_factory.mktemp("moto")
    with (folder / "moto.log").open("wb") as output:
        server = subprocess.Popen(
            [command, "-H", "127.0.0.1", "-p", "0"], stdout=output, stderr=output
        )
    try:
        at = r"Running on (http://[\d.]+:\d+)"
        yield S3Server(_endpoint(server, folder / "moto.log", at), "key", "secret", folder)
    finally:
        server.terminate()
        server.wait(timeout=10)


@pytest.fixture(params=["rclone", "moto"])
def any_s3(request: pytest.FixtureRequest) -> Iterator[str]:
    """A bucket of each S3 server, one after the other, as the one that this process uses."""
    import boto3

    server = request.getfixturevalue({"rclone": "s3"}.get(request.param, request.param))
    with server.used(), closing(boto3.client("s3", region_name="us-east-1")) as client:
        if "shared" not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
            client.create_bucket(Bucket="shared")
        yield "shared"


def _endpoint(
    server: subprocess.Popen[bytes],
    log: Path,
    at: str = r"Starting s3 server on \[(http://[\d.]+:\d+)/",
) -> str:
    """The address that the server says it listens on."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and server.poll() is None:
        if found := re.search(at, log.read_text()):
            return found[1]
        time.sleep(0.02)
    pytest.fail(f"the S3 server did not start: {log.read_text()}")


@pytest.fixture
def store_env(s3: S3Server) -> Iterator[None]:
    """The S3 server as the one that this process uses."""
    with s3.used():
        yield


@pytest.fixture
def s3_client(store_env: None) -> Iterator[Any]:
    """boto3 itself, for what the library does not do."""
    import boto3

    with closing(boto3.client("s3", region_name="us-east-1")) as client:
        yield client


@pytest.fixture(scope="session")
def bucket(s3: S3Server, tiny_data: Path) -> str:
    """The tiny data set as objects with a manifest, below `burgers1d/`."""
    from ups.data.objectstore import ObjectStore

    with s3.used(), closing(ObjectStore()) as store:
        for file in map(TINY_FILE.format, SPLITS):
            store.upload(tiny_data / file, "tiny", f"burgers1d/{file}")
    return "tiny"


@pytest.fixture(scope="session")
def bucket_sources(bucket: str) -> dict[str, list[dict[str, str]]]:
    """The tiny data set as a config names it in the bucket."""
    return {s: [{"key": f"burgers1d/{TINY_FILE.format(s)}", "bucket": bucket}] for s in SPLITS}


os.environ["OMP_NUM_THREADS"] = "1"  # tiny models: threads would only wait for each other
os.environ["TZ"] = "TEST-5:30"  # what shows local time is seen: all times are UTC
time.tzset()

MIXED = {
    "burgers1d": {"train": 20, "val": 5, "test": 6},  # the tiny files
    "burgers1d_nu0.1": {"train": 7, "val": 3, "test": 4},
    "advection1d": {"train": 12, "val": 4, "test": 3},
}
TINY_FILE = "burgers1d_{}.h5"
TINY_OVERRIDES = {
    "data.grid_points": 256,
    "latent.tokens": 8,
    "latent.dim": 16,
    "operator": {"hidden_dim": 32, "depths": [1, 1, 1]},
    "training.pairs_per_step": None,
    "training.batch_size": 6,
    "training.encode_batch_size": 4,
    "training.time_stride": 4,
    "stages.operator.epochs": 3,
    "evaluation.batch_size": 4,
    "evaluation.num_examples": 0,  # a picture takes as long as all the rest of a tiny run
}


ON_GRID = {
    "encoder.kind": "identity",
    "encoder.x_stride": 4,
    "latent.tokens": 64,
    "latent.dim": 1,
    "training.latent_cache_dtype": "float32",
}
OF_KIND = {
    "latent_transformer": {},
    "latent_cnn": {"operator": {"kind": "latent_cnn", "hidden_dim": 16, "num_blocks": 1}},
    "fno": {**ON_GRID, "operator": {"kind": "fno", "width": 8, "modes": 6, "num_layers": 2}},
    "unet": {**ON_GRID, "operator": {"kind": "unet", "width": 8, "num_levels": 3}},
}


@pytest.fixture(params=OF_KIND)
def of_kind(request: pytest.FixtureRequest) -> dict[str, object]:
    """What `tiny_config` takes for each kind of operator, one after the other."""
    return {key.replace(".", "__"): value for key, value in OF_KIND[request.param].items()}


@pytest.fixture(scope="session")
def as_format_1() -> Callable[..., None]:
    """`as_format_1(path, keep)`: make a checkpoint one of format 1.

    Of what it was trained on it then says `keep`, of each problem; of nothing, without.
    """
    import torch

    from ups.training import checkpoint

    def rewrite(path: Path, keep: Sequence[str] = ()) -> None:
        record = checkpoint.load(path)
        config = json.loads(record["config"])
        for section, added in checkpoint.OF_FORMAT_1.items():
            for name in added:
                del config[section][name]
        said = record.pop("trained_on").items()
        if keep:
            record["trained_on"] = {n: {k: of[k] for k in keep} for n, of in said}
        torch.save({**record, "format": 1, "config": json.dumps(config)}, path)

    return rewrite


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `burgers1d_{split}.h5` from the project's own solver: 41 frames, 256 points."""
    root = tmp_path_factory.mktemp("tiny")
    _generate(root, "burgers1d", 0.02, first_seed=0)
    return root


def _generate(root: Path, name: str, value: float, first_seed: int) -> None:
    from ups.data.generate import generate

    grid = {"grid_points": 256, "num_frames": 41, "t_end": 0.4}
    for seed, (split, num) in enumerate(MIXED[name].items(), first_seed):
        problem = name.partition("_")[0]
        generate(root / f"{name}_{split}.h5", num, problem, value, seed=seed, **grid)


def _tiny(overrides: dict[str, object]) -> RunConfig:
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return load_config("smoke", {**TINY_OVERRIDES, **dotted})


@pytest.fixture
def tiny_config(tiny_data: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    """`tiny_config(**overrides)`: the smoke config on the tiny local files; `__` stands for `.`."""

    def make(**overrides: object) -> RunConfig:
        folders = {
            "runs_dir": str(tmp_path / "runs"),
            "data.root": str(tiny_data),
            "data.sources": None,
            "training.latent_cache_dir": str(tmp_path / "cache"),
        }
        config = _tiny({"data.generate": None, **folders, **overrides})
        return config.only_problem() if len(config.data.problems) == 1 else config

    return make


@pytest.fixture(scope="session")
def write_tiny() -> Callable[..., Path]:
    """`write_tiny(path, **overrides)`: the same config as a file, on the data that is given."""

    def write(path: Path, **overrides: object) -> Path:
        path.write_text(dump_config(_tiny(overrides)))
        return path

    return write


@pytest.fixture
def ups_on(tmp_path: Path) -> Callable[[RunConfig], Callable[..., tuple[int, str, str]]]:
    """`ups_on(config)("train", "CONFIG")`: exit code, output, errors; CONFIG is that one's path."""
    from typer.testing import CliRunner

    from deployments.cli.app import app

    def bind(config: RunConfig) -> Callable[..., tuple[int, str, str]]:
        path = tmp_path / "tiny.yaml"
        path.write_text(dump_config(config))

        def ups(*arguments: str) -> tuple[int, str, str]:
            given = [str(path) if argument == "CONFIG" else argument for argument in arguments]
            result = CliRunner().invoke(app, given, env={"COLUMNS": "200"})
            return result.exit_code, result.stdout, result.stderr

        return ups

    return bind


@pytest.fixture(scope="session")
def mixed_data(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny files, and as many frames of Burgers at ν = 0.1 and of advection at β = 0.5."""
    root = tmp_path_factory.mktemp("mixed")
    for file in map(TINY_FILE.format, SPLITS):
        (root / file).hardlink_to(tiny_data / file)
    _generate(root, "burgers1d_nu0.1", 0.1, first_seed=10)
    _generate(root, "advection1d", 0.5, first_seed=10)
    return root


@pytest.fixture
def mixed_config(mixed_data: Path, tiny_config) -> Callable[..., RunConfig]:
    """`mixed_config(**overrides)`: the tiny config with all tasks, or `data__task=[…]` of them."""

    def make(**overrides: object) -> RunConfig:
        given = {"data__root": str(mixed_data), "data__task": list(MIXED)}
        return tiny_config(**{**given, **overrides})

    return make


@pytest.fixture
def stage_all() -> Callable[[RunConfig], dict[str, list[Staged]]]:
    """Split → its files."""
    return lambda config: {split: stage(config, split, None) for split in SPLITS}


@pytest.fixture
def stage_tasks(stage_all) -> Callable[[RunConfig], dict[str, dict[str, list[Staged]]]]:
    """Problem → split → its files."""
    return lambda config: {name: stage_all(own) for name, own in config.by_problem().items()}


@pytest.fixture
def saved(stage_tasks, tmp_path) -> Callable[..., Path]:
    """`saved(config)`: the checkpoint of a model of random weights, made as training makes it."""

    import torch

    from ups.latents.loader import load_on_demand
    from ups.training import checkpoint
    from ups.training.step import TrainStep

    def make(config: RunConfig, name: str = "best.pt") -> Path:
        latents = load_on_demand(config, stage_tasks(config), device="cpu")
        step = TrainStep(config)
        generator = torch.Generator().manual_seed(0)
        for weight in step.ema.parameters():
            weight.data += 0.02 * torch.randn(weight.shape, generator=generator)
        trained_on = checkpoint.trained_on(config, latents)
        state = {**step.state_dict(), "position": {"epoch": 1, "batch": 0, "step": 4}}
        checkpoint.save(tmp_path / name, config, {**state, "trained_on": trained_on})
        return tmp_path / name

    return make


@pytest.fixture(scope="session")
def flip_bit() -> Callable[[Path, int], None]:
    """`flip_bit(path, offset)`: damage that a `stat` does not show; size and time stay."""

    def flip(path: Path, offset: int) -> None:
        stat = path.stat()
        with path.open("r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 1]))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    return flip
