from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

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
