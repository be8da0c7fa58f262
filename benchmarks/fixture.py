"""The inputs of the benchmarks, made once, outside of what is timed, in a folder that git ignores.

The solver makes 64 trajectories; all others are copies of them, each shifted periodically by its
own random number of points. A shifted solution is a solution, every byte of it differs from its
neighbour's, and 4,096 of them cost seconds instead of minutes.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.settings import Settings
from ups.config import RunConfig, load_config
from ups.data.sources import Staged
from ups.data.stamps import hash_file, read_stamp, write_stamp
from ups.latents.build import ensure
from ups.pipeline import SourcesBySplit

TASK = "burgers1d"
NU = 0.01
NUM_VAL = 16
BLOCK = 64
MAX_TRAJECTORIES = 4096


def trajectories(settings: Settings) -> Path:
    """A file in PDEBench's layout with the trajectories of every benchmark, and some for val."""
    num = settings.scaled(MAX_TRAJECTORIES) + NUM_VAL
    shape = f"{num}x{settings.num_frames}x{settings.grid_points}"
    path = settings.folder / f"tiled-{settings.num_solved}-{shape}.h5"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        solved = settings.folder / f"solved-{settings.num_solved}-{shape}.h5"
        _solve(settings, solved)
        aside = path.with_suffix(".part")
        _tile(solved, aside, num)
        aside.replace(path)
        solved.unlink()
    return path


def sources(settings: Settings, num_train: int) -> SourcesBySplit:
    """Train: the first trajectories of the file. Val: its last."""
    path = trajectories(settings)
    stamp = read_stamp(path)
    if stamp is None:
        write_stamp(path, path.stat(), hash_file(path), etag="")
        stamp = read_stamp(path)
        assert stamp is not None
    total = settings.scaled(MAX_TRAJECTORIES) + NUM_VAL
    rows = {"train": (0, num_train), "val": (total - NUM_VAL, total)}
    return {
        split: [
            Staged(
                split=split,  # type: ignore[arg-type]
                uri=str(path),
                path=path,
                rows=rows[split],
                sha256=stamp.sha256,
                num_bytes=stamp.num_bytes,
                fetched_bytes=0,
                seconds=0,
            )
        ]
        for split in rows
    }


def config(settings: Settings, cache: str, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """The 32-dim config (K = 16, D = 32, fp16) with its cache in a folder of this name."""
    return load_config(
        "train_burgers_32dim",
        {
            "data.grid_points": settings.grid_points,
            "training.latent_cache_dir": str(settings.folder / cache),
            "training.rollout_horizon": 1,
            "training.device": settings.device,
            "runs_dir": str(settings.folder / "runs"),
            **(overrides or {}),
        },
    )


def latents(settings: Settings, num: int, cache: str) -> None:
    """Have the cache entry of `num` trajectories, for benchmarks that only read it."""
    ensure(config(settings, cache), sources(settings, num))


def empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _solve(settings: Settings, path: Path) -> None:
    from ups.data.burgers import generate

    generate(
        path,
        settings.num_solved,
        nu=NU,
        seed=0,
        grid_points=settings.grid_points,
        num_frames=settings.num_frames,
        device=settings.device,
    )


def _tile(solved: Path, path: Path, num: int) -> None:
    import h5py

    rng = np.random.default_rng(0)
    with h5py.File(solved) as source, h5py.File(path, "w") as file:
        base = source["tensor"][()]
        points = base.shape[2]
        file.attrs["Nu"] = source.attrs["Nu"]
        for name in ("x-coordinate", "t-coordinate"):
            file[name] = source[name][()]
        tensor = file.create_dataset("tensor", (num, *base.shape[1:]), "<f4")
        for first in range(0, num, BLOCK):
            rows = range(first, min(first + BLOCK, num))
            shifts = rng.integers(points, size=len(rows))
            tensor[rows.start : rows.stop] = np.stack(
                [np.roll(base[i % len(base)], s, -1) for i, s in zip(rows, shifts, strict=True)]
            )
