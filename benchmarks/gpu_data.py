"""The PDEBench-sized set for the GPU benchmarks, solved on the spot, and its config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.settings import Settings
from ups.config import RunConfig, load_config
from ups.data.burgers import generate
from ups.data.sources import Staged
from ups.data.stamps import hash_file, read_stamp, write_stamp
from ups.pipeline import SourcesBySplit

NUM = 10_000
SHARE_VAL = 0.1
NU, SEED = 0.01, 1
BATCH = {"cuda": 2000, "cpu": 64}


def data_set(settings: Settings) -> Path:
    """10,000 × 201 × 1024 in one file, 8.2 GB, solved where it is not there yet."""
    num = settings.scaled(NUM)
    path = settings.folder / f"gpu-{num}x{settings.num_frames}x{settings.grid_points}.h5"
    if path.exists():
        return path
    generate(
        path,
        num,
        nu=NU,
        seed=SEED,
        grid_points=settings.grid_points,
        num_frames=settings.num_frames,
        batch_size=BATCH[settings.device],
        device=settings.device,
    )
    if read_stamp(path) is None:
        write_stamp(path, path.stat(), hash_file(path), etag="")
    return path


def split_rows(settings: Settings) -> dict[str, tuple[int, int]]:
    """As the PDEBench config cuts its file: a tenth test, a tenth val, the rest train."""
    num = settings.scaled(NUM)
    share = max(1, round(num * SHARE_VAL))
    return {"test": (0, share), "val": (share, 2 * share), "train": (2 * share, num)}


def sources(settings: Settings, path: Path, *, whole: bool = False) -> SourcesBySplit:
    """The splits as staged; `whole`: train has all rows but val's last one."""
    stamp = read_stamp(path)
    assert stamp is not None
    rows = split_rows(settings)
    if whole:
        num = settings.scaled(NUM)
        rows = {"train": (0, num - 1), "val": (num - 1, num)}
    return {
        split: [
            Staged(
                split=split,  # type: ignore[arg-type]
                uri=str(path),
                path=path,
                rows=part,
                sha256=stamp.sha256,
                num_bytes=stamp.num_bytes,
                fetched_bytes=0,
                seconds=0,
            )
        ]
        for split, part in rows.items()
    }


def config(settings: Settings, cache: str, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """The 32-dim config; on a CPU with the smoke config's operator, to run the same code small."""
    small = {
        "operator.hidden_dim": 32,
        "operator.num_heads": 4,
        "operator.depths": [1, 1, 1],
        "training.batch_size": 4,
        "training.time_stride": 20,
        "training.rollout_horizon": 1,
    }
    return load_config(
        "train_burgers_32dim",
        {
            **(small if settings.device == "cpu" else {}),
            "data.grid_points": settings.grid_points,
            "training.latent_cache_dir": str(settings.folder / cache),
            "training.device": settings.device,
            "runs_dir": str(settings.folder / "runs"),
            **(overrides or {}),
        },
    )
