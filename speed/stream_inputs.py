"""The data sets of `stream`: as PDEBench lays them out, and as LitData and Mosaic read them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speed import inputs
from speed.s3 import BUCKET
from speed.settings import Settings
from speed.worker import Worker, WorkerError
from ups.data.blocks import describe_file

NUMS = (304, 608, 1216, 2432)  # trajectories: 0.25, 0.5, 1 and 2 GB
NUM_HELD_OUT = 8  # of val, and of test
BLOCK = 64
PEERS = {"LitData": "litdata", "Mosaic Streaming": "mosaic"}  # as `peer_formats` calls them
FIELD = "frames"  # of a sample in their formats


@dataclass(frozen=True, slots=True)
class DataSet:
    """A file for each split, and a folder for each peer, all below a prefix of the bucket.

    Attributes:
        folder: whose folders are buckets.
        shape: of train, (N, T, X).
    """

    folder: Path
    shape: tuple[int, int, int]

    @property
    def prefix(self) -> str:
        return "x".join(map(str, self.shape))

    @property
    def path(self) -> Path:
        return self.folder / BUCKET / self.prefix

    @property
    def num_bytes(self) -> int:
        """Of train's fields."""
        num, frames, points = self.shape
        return 4 * num * frames * points

    @property
    def size(self) -> str:
        return f"{self.num_bytes / 1e9:.2g} GB"

    def key(self, split: str) -> str:
        return f"{self.prefix}/{split}.h5"


def data_sets(settings: Settings) -> list[DataSet]:
    """From the smallest to the largest."""
    nums = dict.fromkeys(settings.scaled(num, least=8) for num in NUMS)
    folder = settings.folder / "s3-stream"
    return [DataSet(folder, (n, settings.num_frames, settings.grid_points)) for n in nums]


def make(settings: Settings) -> None:
    """Write the files, and what of the peers' copies can be written."""
    make_files(settings, data_sets(settings))
    for data_set in data_sets(settings):
        for kind in PEERS.values():
            with suppress(WorkerError):  # its row says so
                convert(settings, data_set, kind)


def make_files(settings: Settings, data_sets: Iterable[DataSet]) -> None:
    """Write the files of these data sets, with their manifests, where they are not there."""
    for data_set in data_sets:
        if not (data_set.path / "manifest.json").exists():
            _write_files(settings, data_set)


def _write_files(settings: Settings, data_set: DataSet) -> None:
    import h5py

    path = inputs.empty(data_set.path)
    with h5py.File(inputs.tiled_set(settings)) as tiled:
        total, num = len(tiled["tensor"]), data_set.shape[0]
        rows = {
            "train": (0, num),
            "val": (total - 2 * NUM_HELD_OUT, total - NUM_HELD_OUT),
            "test": (total - NUM_HELD_OUT, total),
        }
        manifest = {}
        for split, (first, end) in rows.items():
            file = path / f"{split}.h5"
            _copy(tiled, file, first, end)
            manifest[file.name] = describe_file(file)
    (path / "manifest.json").write_text(json.dumps(manifest))


def _copy(tiled: Any, path: Path, first: int, end: int) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file.attrs["Nu"] = tiled.attrs["Nu"]
        for name in ("x-coordinate", "t-coordinate"):
            file[name] = tiled[name][()]
        shape = (end - first, *tiled["tensor"].shape[1:])
        tensor = file.create_dataset("tensor", shape, "<f4")
        for lo in range(first, end, BLOCK):
            hi = min(lo + BLOCK, end)
            tensor[lo - first : hi - first] = tiled["tensor"][lo:hi]


def convert(settings: Settings, data_set: DataSet, kind: str) -> None:
    """Write a peer's copy of train, unless it is there.

    Raises:
        WorkerError: its environment is not installed, or the peer fails.
    """
    import h5py

    if not settings.peers.exists():
        raise WorkerError(f"no {settings.peers.parents[1].name}: run `make speed`")
    folder = data_set.path / kind
    if (folder / "index.json").exists():
        return
    path = data_set.path / "train.h5"
    with h5py.File(path) as file:
        offset = file["tensor"].id.get_offset()
    with Worker("speed.peer_formats", python=settings.peers) as worker:
        worker.call(
            f"write_{kind}",
            path=str(path),
            shape=list(data_set.shape),
            folder=str(folder),
            dtype="float32",
            offset=offset,
            name=FIELD,
        )
