from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ups.config import RunConfig
from ups.latents.datasets import LatentDataset
from ups.latents.loader import Latents
from ups.pipeline.phases import build_cache, load_latents
from ups.training import checkpoint


@pytest.fixture(scope="session")
def assert_same_weights() -> Callable[[Path, Path], None]:
    """`assert_same_weights(run_dir, other)`: model and average of their last checkpoints."""

    def check(run_dir: Path, other: Path) -> None:
        first, second = (checkpoint.load(d / "checkpoints/last.pt") for d in (run_dir, other))
        for which in ("model", "ema"):
            assert first[which].keys() == second[which].keys()
            for name, value in first[which].items():
                assert torch.equal(value, second[which][name]), f"{which} {name}"

    return check


@pytest.fixture
def prepared(tiny_config, stage_all, tmp_path) -> Callable[..., tuple[RunConfig, Latents, Path]]:
    """`prepared(**overrides)`: a config, its latents, in RAM, and a new run folder."""

    def make(folder: str = "run", **overrides: Any) -> tuple[RunConfig, Latents, Path]:
        config = tiny_config(**{"features__preload": "ram", **overrides})
        sources, entries = {"burgers1d": stage_all(config)}, None
        if config.features.preload != "off":
            entries = {"burgers1d": build_cache(config, sources["burgers1d"])}
        latents = load_latents(config, sources, entries)
        run_dir = tmp_path / folder
        run_dir.mkdir(exist_ok=True)
        return config, latents, run_dir

    return make


@pytest.fixture(scope="session")
def stop_after() -> Callable[[LatentDataset, int], threading.Event]:
    """`stop_after(data, count)`: an event that is set while batch `count` of it is fetched."""

    def make(data: LatentDataset, count: int) -> threading.Event:
        stop, real, fetched = threading.Event(), data.batch, []

        def fetch(index_B, frames_BF=None):
            fetched.append(index_B)
            if len(fetched) == count:
                stop.set()
            return real(index_B, frames_BF)

        data.batch = fetch
        return stop

    return make
