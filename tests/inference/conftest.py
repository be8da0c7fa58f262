from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ups.config import RunConfig
from ups.latents.loader import load_on_demand
from ups.training import checkpoint
from ups.training.step import TrainStep


@pytest.fixture
def saved(stage_tasks, tmp_path) -> Callable[..., Path]:
    """`saved(config)`: the checkpoint of a model of random weights, made as training makes it."""

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
