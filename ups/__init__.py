"""Train neural PDE simulators, see where the time before the first step goes, and use them.

operator = ups.load("runs/…/checkpoints/best.pt")
u = operator.predict(u0, nu=0.01, times=[0.5, 1.0, 2.0])
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

__all__ = ["PROJECT_DIR", "__version__", "load"]

__version__ = "0.1.0"

PROJECT_DIR = Path(__file__).resolve().parents[1]


def load(checkpoint: str | Path, device: str = "auto") -> Any:
    """Load a trained operator from a checkpoint, which is all that it needs.

    Args:
        checkpoint: such as a run's `checkpoints/best.pt`; it may have been copied anywhere.
        device: `cpu`, `cuda`, or `auto`: the GPU where there is one.
    Returns:
        A `ups.inference.operator.TrainedOperator`, whose `predict` says what it takes.
    Raises:
        ups.errors.CheckpointError: there is none, it is damaged, or of another version.
        ups.errors.DeviceError: CUDA is asked for, and there is none.
        ups.errors.InputError: no device is called so.
    """
    # By its name, and now: it brings torch, and what it imports imports this module.
    return import_module("ups.inference.operator").load(Path(checkpoint), device)
