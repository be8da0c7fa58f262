"""The inputs of the benchmarks, made once, outside of what is timed, in a folder that git ignores.

For the CPU, the solver makes 64 trajectories; all others are copies of them, each shifted
periodically by its own random number of points. A shifted solution is a solution, every byte of it
differs from its neighbour's, and 4,096 of them cost seconds instead of minutes. For the GPU, each
trajectory of a set of PDEBench's size is solved.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from speed.settings import Settings
from ups.config import ProblemConfig, load_config
from ups.data.generate import generate
from ups.data.sources import Staged
from ups.data.stamps import Stamp, hash_file, read_stamp, write_stamp
from ups.pipeline.phases import SourcesBySplit

PROBLEM = "burgers1d"
CONFIG = "train_burgers_32dim"  # K = 16, D = 32, fp16
NU = 0.01
NUM_VAL, NUM_TILED, TILE_BLOCK = 16, 4096, 64
NUM_SOLVED, SHARE_VAL = 10_000, 0.1
SOLVED_BATCH = {"cuda": 2000, "cpu": 64}
SMALL_OPERATOR = {"operator": {"hidden_dim": 32, "depths": [1, 1, 1]}}
SMALL_RUN = {
    **SMALL_OPERATOR,
    "training.batch_size": 4,
    "training.time_stride": 20,
    "training.rollout_horizon": 1,
}


def tiled_set(settings: Settings) -> Path:
    """A file in PDEBench's layout with the trajectories of all CPU benchmarks, and some for val."""
    num = settings.scaled(NUM_TILED) + NUM_VAL
    shape = f"{num}x{settings.num_frames}x{settings.grid_points}"
    path = settings.folder / f"tiled-{settings.num_solved}-{shape}.h5"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        solved = settings.folder / f"solved-{settings.num_solved}-{shape}.h5"
        _solve(settings, solved, settings.num_solved, seed=0)
        aside = path.with_suffix(".part")
        _tile(solved, aside, num)
        aside.replace(path)
        solved.unlink()
    return path


def tiled_sources(settings: Settings, num_train: int) -> SourcesBySplit:
    """Train: the first trajectories of the tiled set. Val: its last."""
    total = settings.scaled(NUM_TILED) + NUM_VAL
    rows = {"train": (0, num_train), "val": (total - NUM_VAL, total)}
    return _staged(tiled_set(settings), rows)


def solved_set(settings: Settings) -> Path:
    """10,000 × 201 × 1024 in one file, 8.2 GB, solved unless it has been before."""
    num = settings.scaled(NUM_SOLVED)
    path = settings.folder / f"gpu-{num}x{settings.num_frames}x{settings.grid_points}.h5"
    if not path.exists():
        _solve(settings, path, num, seed=1, batch_size=SOLVED_BATCH[settings.device])
        stamp_of(path)
    return path


def solved_rows(settings: Settings) -> dict[str, tuple[int, int]]:
    """As the PDEBench config cuts its file: a tenth test, a tenth val, the rest train."""
    num = settings.scaled(NUM_SOLVED)
    share = max(1, round(num * SHARE_VAL))
    return {"test": (0, share), "val": (share, 2 * share), "train": (2 * share, num)}


def solved_sources(
    settings: Settings, num_train: int | None = None, *, whole: bool = False
) -> SourcesBySplit:
    """The splits of the solved set.

    Args:
        num_train: take the first trajectories of train only, that many at most.
        whole: train has all rows but val's last one.
    """
    num = settings.scaled(NUM_SOLVED)
    rows = {"train": (0, num - 1), "val": (num - 1, num)} if whole else solved_rows(settings)
    if num_train is not None:
        first, end = rows["train"]
        rows["train"] = first, min(first + num_train, end)
    return _staged(solved_set(settings), rows)


def config(
    settings: Settings, cache: str, overrides: Mapping[str, Any] | None = None
) -> ProblemConfig:
    """The config of the CPU benchmarks, with its cache in a folder of this name."""
    return _config(settings, cache, {"training.rollout_horizon": 1, **(overrides or {})})


def gpu_config(
    settings: Settings, cache: str, overrides: Mapping[str, Any] | None = None
) -> ProblemConfig:
    """The config of the GPU benchmarks; on a CPU with a small operator, to run the same code."""
    small = SMALL_RUN if settings.device == "cpu" else {}
    return _config(settings, cache, {**small, **(overrides or {})})


def _config(settings: Settings, cache: str, overrides: Mapping[str, Any]) -> ProblemConfig:
    places = {
        "data.grid_points": settings.grid_points,
        "training.latent_cache_dir": str(settings.folder / cache),
        "training.device": settings.device,
        "training.pairs_per_step": None,  # as its peers: whole trajectories
        "runs_dir": str(settings.folder / "runs"),
    }
    return load_config(CONFIG, {**places, **overrides}).only_problem()


def run_places(folder: Path) -> dict[str, str]:
    """Overrides of a config, so that its runs keep all they write in this folder."""
    return {
        "runs_dir": str(folder / "runs"),
        "data.root": str(folder / "staged"),
        "training.latent_cache_dir": str(folder / "cache"),
    }


def empty(folder: Path) -> Path:
    """The folder, emptied, or made."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def stamp_of(path: Path) -> Stamp:
    """The digest and size of a file, which is hashed where nobody has noted them."""
    stamp = read_stamp(path)
    if stamp is None:
        write_stamp(path, path.stat(), hash_file(path), etag="")
        stamp = read_stamp(path)
        assert stamp is not None
    return stamp


def _staged(path: Path, rows: Mapping[str, tuple[int, int]]) -> SourcesBySplit:
    stamp = stamp_of(path)
    staged = partial(
        Staged,
        uri=str(path),
        path=path,
        sha256=stamp.sha256,
        num_bytes=stamp.num_bytes,
        fetched_bytes=0,
        seconds=0,
    )
    return {split: [staged(split=split, rows=of_split)] for split, of_split in rows.items()}


def _solve(settings: Settings, path: Path, num: int, *, seed: int, **options: Any) -> None:
    options |= {"grid_points": settings.grid_points, "num_frames": settings.num_frames}
    generate(path, num, PROBLEM, NU, seed=seed, device=settings.device, **options)


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
        for first in range(0, num, TILE_BLOCK):
            rows = range(first, min(first + TILE_BLOCK, num))
            shifts = rng.integers(points, size=len(rows))
            tensor[rows.start : rows.stop] = np.stack(
                [np.roll(base[i % len(base)], s, -1) for i, s in zip(rows, shifts, strict=True)]
            )
