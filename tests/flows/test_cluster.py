"""Entries that a Dask cluster encodes: two worker processes of this machine, and one of another."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import h5py
import psutil
import pytest

from tests.conftest import TINY_FILE
from ups import PROJECT_DIR
from ups.background import Background
from ups.config import dump_config
from ups.data.objectstore import ObjectStore
from ups.errors import ClusterError, Interrupted, MissingExtra, ValidationFailed
from ups.latents import cluster as cluster_of
from ups.latents import parts, store
from ups.latents.ahead import look
from ups.latents.build import ensure
from ups.pipeline.phases import build_cache
from ups.progress import logged
from ups.validate.run import require_valid

# Not imported here: every worker of xdist imports all files, and one runs this one.
MISSING = [name for name in ("distributed", "prefect_dask") if find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason="the extra `dask` is not installed")

SHARDS = {"train": 14, "val": 4}
ROWS = 24  # of a shard: long enough that a worker can be killed in the middle of it


def scheduler():
    """One in this process, with no worker."""
    import distributed

    places = {"host": "127.0.0.1", "protocol": "tcp://", "dashboard_address": "127.0.0.1:0"}
    return distributed.LocalCluster(n_workers=0, processes=False, silence_logs=False, **places)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A scheduler in this process with two workers; `start(hidden, **env)` adds one more."""
    import distributed

    folder, workers = tmp_path_factory.mktemp("dask"), []

    def start(hidden=None, **env):
        command = [sys.executable, "-m", "distributed.cli.dask_worker", there.scheduler_address]
        command += ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory", folder]
        if hidden:  # from this worker, by an empty disk in its place
            script = f'mount -t tmpfs none {hidden} && exec "$@"'
            command = ["unshare", "-rm", "sh", "-c", script, "sh", *command]
        with (folder / f"worker-{len(workers)}.log").open("wb") as log:
            given = {**os.environ, "PYTHONPATH": str(PROJECT_DIR), **env}
            worker = subprocess.Popen(command, env=given, stdout=log, stderr=log, cwd=folder)
        workers.append(worker)
        return worker

    with scheduler() as there:
        try:
            first = [start(), start()]
            there.wait_for_workers(2, timeout=90)
            with distributed.Client(there.scheduler_address, set_as_default=False) as client:
                client.run(cluster_of.code_identity)  # imports: a slow machine takes its time
            yield SimpleNamespace(address=there.scheduler_address, workers=first, start=start)
        finally:
            for worker in workers:
                worker.kill()
                worker.wait(timeout=10)


@pytest.fixture(scope="module")
def shards(tiny_data, tmp_path_factory):
    """18 files of trajectories of the tiny ones."""
    root = tmp_path_factory.mktemp("shards")
    (root / TINY_FILE.format("test")).hardlink_to(tiny_data / TINY_FILE.format("test"))
    for split, num in SHARDS.items():
        with h5py.File(tiny_data / TINY_FILE.format(split)) as tiny:
            for shard in range(num):
                rows = [(shard + row) % len(tiny["tensor"]) for row in range(ROWS)]
                with h5py.File(root / f"burgers1d_{split}_{shard:02}.h5", "w") as file:
                    file.attrs.update(tiny.attrs)
                    for name, data in tiny.items():
                        values = data[()][rows] if name == "tensor" else data[()]
                        file.create_dataset(name, data=values).attrs.update(data.attrs)
    return root


@pytest.fixture
def on_cluster(cluster, tiny_config, shards, tmp_path):
    """`on_cluster(**overrides)`: the tiny config on the shards, encoded by the cluster."""
    given = {
        "data__root": str(shards),
        "training__latent_cache_dir": str(tmp_path / "of-the-cluster"),
        "training__encode_batch_size": 1,
        "stages__operator__max_steps": 1,
        "encode": {"engine": "dask", "address": cluster.address},
    }
    return lambda **overrides: tiny_config(**{**given, **overrides})


@pytest.fixture
def refused(on_cluster, stage_all):
    """`refused(match, **overrides)`: a build is, and leaves nothing in the cache directory."""

    def check(match, **overrides):
        config = on_cluster(**overrides)
        with pytest.raises(ClusterError, match=match):
            build_cache(config, stage_all(config))
        left = [path for path in config.training.latent_cache_dir.rglob("*") if path.is_file()]
        assert [path.name for path in left] == [".lock"]

    return check


def files_of(config):
    """Name → bytes of the files of the only entry, whose manifest is checked; nothing else is."""
    (manifest,) = store.list_entries(config.training.latent_cache_dir)
    directory = store.generation_dir(config.training.latent_cache_dir, manifest)
    found = {path.name: path.read_bytes() for path in directory.iterdir()}
    assert set(found) == {f.name for f in manifest.files} | {".cache_metadata.json", ".in_use"}
    for file in manifest.files:
        assert parts.check_size(directory / file.name, file)
    return {name: data for name, data in found.items() if name.endswith(".safetensors")}


def kill_in_the_middle(cache_dir, workers, is_over):
    """Kill -9 the first worker that has a file of its own open, and name that file."""
    while not is_over.is_set():
        for worker in workers:
            if not any(cache_dir.glob(f"*/building-*/*.safetensors{parts.SUFFIX}*")):
                continue
            worker.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, worker.pid, os.WSTOPPED)
            names = [file.path for file in psutil.Process(worker.pid).open_files()]
            if mine := [Path(name) for name in names if parts.SUFFIX in name]:
                worker.kill()
                worker.wait()
                return mine[0]
            worker.send_signal(signal.SIGCONT)
        time.sleep(0.001)
    return None


def test_a_run_whose_worker_is_killed_makes_the_entry_of_one_machine(
    prefect_server, cluster, on_cluster, stage_all, run, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    config = on_cluster()
    path = tmp_path / "tiny.yaml"
    path.write_text(dump_config(config))
    is_over, cache_dir = threading.Event(), config.training.latent_cache_dir
    killing = Background(lambda: kill_in_the_middle(cache_dir, cluster.workers, is_over), "kill")
    state, tasks, breakdown = run(str(path))
    is_over.set()
    assert state.is_completed(), state.message
    assert killing.result().name.partition(parts.SUFFIX)[0] in files_of(config)
    assert breakdown["cache_reused"] is False
    encoded = {name: end for name, end in tasks.items() if name.startswith("2 encode [")}
    names = [f"{split}_{shard:03}" for split, num in SHARDS.items() for shard in range(num)]
    assert encoded == {f"2 encode [{name}]": "Completed" for name in names}
    local = on_cluster(training__latent_cache_dir=str(tmp_path / "local"), encode={})
    ensure(local, stage_all(local))
    assert files_of(config) == files_of(local)


def test_a_stopped_build_of_row_blocks_goes_on_with_what_is_done(
    cluster, on_cluster, stage_all, shards, tmp_path, monkeypatch, caplog
):
    caplog.set_level("INFO")
    monkeypatch.setattr(parts, "ENOUGH_FILES", 1000)
    monkeypatch.setattr(parts, "LEAST_BYTES", 1 << 16)  # six rows
    config, stop, seen = on_cluster(), threading.Event(), []

    def progress(done, total):
        seen.append(done)
        if done >= 60:
            stop.set()

    with pytest.raises(Interrupted, match="goes on from here"):
        build_cache(config, stage_all(config), stop=stop, progress=progress)
    (building,) = config.training.latent_cache_dir.glob("*/building-*")
    deadline = time.monotonic() + 30
    while left := list(building.glob(f"*{parts.SUFFIX}*")):  # a worker stops at its next chunk
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    again = []
    build_cache(config, stage_all(config), progress=lambda done, _: again.append(done))
    assert again[0] == seen[-1] >= 60
    assert sum("no streaming start" in line for line in caplog.messages) == 2  # once a build
    local = on_cluster(training__latent_cache_dir=str(tmp_path / "local"), encode={})
    ensure(local, stage_all(local))
    assert files_of(config) == files_of(local)


def test_a_cluster_that_is_not_there_or_has_no_worker_is_refused_within_half_a_minute(
    refused, on_cluster, bucket_sources, store_env, tmp_path, monkeypatch
):
    waits = cluster_of.CONNECT_S, cluster_of.FIRST_WORKER_S, cluster_of.LEAST_ANSWER_S
    assert max(sum(waits), cluster_of.WITHIN_S) < 30
    monkeypatch.setattr(cluster_of, "CONNECT_S", 0.5)
    monkeypatch.setattr(cluster_of, "FIRST_WORKER_S", 0.2)
    nobody = {"engine": "dask", "address": "tcp://127.0.0.1:1"}
    message = f"no Dask cluster answers at {nobody['address']} .* start it with `dask scheduler`"
    refused(message, encode=nobody)
    config = on_cluster(
        encode=nobody, data__sources=bucket_sources, data__root=str(tmp_path / "staged")
    )
    with closing(ObjectStore()) as client, pytest.raises(ClusterError, match=message):
        look(config, client, threading.Event(), logged)  # before anything is fetched
    fault = cluster_of.find_unreachable("http://127.0.0.1:1/api")
    assert re.search("process .* does not reach http://127.0.0.1:1/api", fault)
    with scheduler() as empty:
        address = empty.scheduler_address
        refused(
            f"{address} has no worker, .* `dask worker {address}`",
            encode={"engine": "dask", "address": address},
        )


def test_a_worker_of_another_version_or_without_the_folders_is_refused(
    cluster, refused, shards, tmp_path
):
    import distributed

    foreign = tmp_path / "foreign"
    for package in ("ups", "tasks"):
        shutil.copytree(PROJECT_DIR / package, foreign / package)
    with (foreign / "ups" / "units.py").open("a") as file:
        file.write("# changed\n")
    with distributed.Client(cluster.address, set_as_default=False) as client:
        there = len(client.nthreads())
        worker = cluster.start(PYTHONPATH=str(foreign))
        client.wait_for_workers(there + 1, timeout=60)
        refused("has sources [0-9a-f]{12}, expected .* install the same commit")
        worker.kill()
        while len(client.nthreads()) > there:
            time.sleep(0.05)
        cluster.start(hidden=tmp_path)
        client.wait_for_workers(there + 1, timeout=60)
        refused(f"does not see {tmp_path}.* training.latent_cache_dir under the same path")


def test_the_missing_extra_is_named_before_a_run(on_cluster, monkeypatch):
    monkeypatch.setattr(cluster_of, "LIBRARY", "distributed_elsewhere")
    message = (
        "encode.engine: found dask, which needs distributed_elsewhere, and that is not installed: "
        "pip install -e '.[dask]'"
    )
    with pytest.raises(ValidationFailed, match=re.escape(message)):
        require_valid(on_cluster())
    with pytest.raises(MissingExtra, match=re.escape(message)):
        cluster_of.require_cluster(on_cluster())
