"""Train neural PDE simulators, see where the time before the first step goes, and use them.

operator = ups.load("runs/…/checkpoints/best.pt")
u = operator.predict(u0, nu=0.01, times=[0.5, 1.0, 2.0])
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ups.inference.operator import TrainedOperator

__all__ = ["PROJECT_DIR", "load"]

PROJECT_DIR = Path(__file__).resolve().parents[1]


def load(checkpoint: str | Path, device: str = "auto") -> TrainedOperator:
    """Load a trained operator from a checkpoint, which is all that it needs.

    Args:
        checkpoint: such as a run's `checkpoints/best.pt`; it may have been copied anywhere.
        device: `cpu`, `cuda`, or `auto`: the GPU where there is one.
    Raises:
        ups.errors.CheckpointError: there is none, it is damaged, or of another version.
        ups.errors.DeviceError: CUDA is asked for, and there is none.
        ups.errors.InputError: no device is called so.
    """
    from ups.inference.operator import load as load_operator  # and with it torch

    return load_operator(Path(checkpoint), device)
