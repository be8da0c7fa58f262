"""LitData and Mosaic StreamingDataset over the same arrays; runs in the peers' environment."""

from __future__ import annotations

import importlib
import importlib.machinery
import os
import shutil
import sys
import time
import types

import numpy as np
import torch


# `import streaming` imports torchvision, whose registered build is for CUDA and does not import
# beside a CPU build of torch. Nothing that is measured here uses it.
class _Stub(types.ModuleType):
    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return object


for _name in ("", ".datasets", ".transforms", ".transforms.functional"):
    _stub = sys.modules["torchvision" + _name] = _Stub("torchvision" + _name)
    _stub.__spec__ = importlib.machinery.ModuleSpec(_stub.__name__, None)
    _stub.__path__ = []


MODULES = {"litdata": "litdata", "mosaic": "streaming"}


def import_s(peer: str) -> float:
    """Seconds that importing a peer takes."""
    started = time.perf_counter()
    importlib.import_module(MODULES[peer])
    return time.perf_counter() - started


def _source(path: str, shape: list[int], dtype: str, offset: int | None) -> np.ndarray:
    """The array of a file, which begins at `offset`, or is its end."""
    if offset is None:
        offset = os.path.getsize(path) - np.dtype(dtype).itemsize * int(np.prod(shape))
    return np.memmap(path, dtype, "r", offset=offset, shape=tuple(shape))


def _sample(args: tuple[int, str, tuple[str, list[int], str, int | None]]) -> dict[str, object]:
    i, name, source = args
    return {name: torch.from_numpy(np.array(_source(*source)[i])), "nu": 0.01}


def write_litdata(
    path: str,
    shape: list[int],
    folder: str,
    dtype: str = "float16",
    offset: int | None = None,
    name: str = "latent",
) -> None:
    from litdata import optimize

    shutil.rmtree(folder, ignore_errors=True)
    optimize(
        fn=_sample,
        inputs=[(i, name, (path, shape, dtype, offset)) for i in range(shape[0])],
        output_dir=folder,
        chunk_bytes="64MB",
        num_workers=1,
    )


def read_litdata(folder: str, shape: list[int]) -> float:
    """Seconds to open the data set and put every sample into one tensor."""
    from litdata import StreamingDataset

    started = time.perf_counter()
    dataset = StreamingDataset(folder)
    into = torch.empty(shape, dtype=torch.float16)
    for i in range(len(dataset)):
        into[i] = dataset[i]["latent"]
    return time.perf_counter() - started


def write_mosaic(
    path: str,
    shape: list[int],
    folder: str,
    dtype: str = "float16",
    offset: int | None = None,
    name: str = "latent",
) -> None:
    from streaming import MDSWriter

    shutil.rmtree(folder, ignore_errors=True)
    of_sample = ",".join(str(n) for n in shape[1:])
    columns = {name: f"ndarray:{dtype}:{of_sample}", "nu": "float64"}
    source = _source(path, shape, dtype, offset)
    with MDSWriter(out=folder, columns=columns, size_limit=1 << 26) as writer:
        for i in range(shape[0]):
            writer.write({name: np.array(source[i]), "nu": 0.01})


def read_mosaic(folder: str, shape: list[int]) -> float:
    """Seconds to open the data set and put every sample into one tensor."""
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    started = time.perf_counter()
    dataset = StreamingDataset(local=folder, remote=None, shuffle=False, batch_size=1)
    array = torch.empty(shape, dtype=torch.float16).numpy()
    for i in range(len(dataset)):
        array[i] = dataset[i]["latent"]
    return time.perf_counter() - started
