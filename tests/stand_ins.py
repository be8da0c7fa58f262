"""What stands in for a GPU and for a person's login, and what an offline tracker has written."""

from __future__ import annotations

import ctypes.util
import json
import os
import shutil
import struct
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest


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


CUDA_DRIVER = """
#include <stdio.h>
#include <stdlib.h>
static int called(const char *name, int is_right) {
    const char *path = getenv("CUDA_CALLS");
    FILE *file = path ? fopen(path, "a") : NULL;
    if (file) { fprintf(file, "%s\\n", name); fclose(file); }
    return is_right ? 0 : 1;
}
int cuInit(unsigned flags) { return called("cuInit", flags == 0); }
int cuDeviceGet(int *device, int place) { *device = 7; return called("cuDeviceGet", place == 0); }
int cuDevicePrimaryCtxRetain(void **context, int device) {
    *context = &called;
    return called("cuDevicePrimaryCtxRetain", device == 7);
}
"""


@pytest.fixture(scope="session")
def cuda_driver(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """A folder for LD_LIBRARY_PATH with a driver of CUDA that notes its calls in $CUDA_CALLS.

    None where a real one is, or no C compiler.
    """
    compiler, folder = shutil.which("cc"), tmp_path_factory.mktemp("driver")
    if compiler is None or ctypes.util.find_library("cuda") is not None:
        return None
    (folder / "cuda.c").write_text(CUDA_DRIVER)
    build = [compiler, "-shared", "-fPIC", "-o", "libcuda.so.1", "cuda.c"]
    subprocess.run(build, cwd=folder, check=True)
    return folder


@pytest.fixture
def make_nvml() -> type[FakeNvml]:
    return FakeNvml


@pytest.fixture
def no_wandb_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights & Biases as on a machine where nobody has logged in."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb-home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


@pytest.fixture
def read_tensorboard() -> Callable[[Path], Any]:
    """`read_tensorboard(run_dir)`: the accumulator of the events in a run's folder."""
    # Not on top: every worker of xdist imports that, and few tests need it.
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return lambda run_dir: EventAccumulator(str(run_dir / "tensorboard")).Reload()


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

    def values(items: Iterable[Any]) -> dict[str, Any]:
        return {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}

    def read(run_dir: Path) -> SimpleNamespace:
        (path,) = run_dir.glob("wandb/offline-run-*/*.wandb")
        found = SimpleNamespace(history=[], config={}, summary={}, exit_code=None, path=path)
        found.num_stats = 0
        for record in records(path):
            found.num_stats += record.HasField("stats")
            found.config |= values(record.run.config.update)
            found.summary |= values(record.summary.update)
            if record.HasField("history"):
                found.history.append(values(record.history.item))
            if record.HasField("exit"):
                found.exit_code = record.exit.exit_code
        return found

    return read
