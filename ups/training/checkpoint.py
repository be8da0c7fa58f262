"""Checkpoints: written aside and renamed, with config, position and random state inside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ups.config import RunConfig
from ups.equations import in_order
from ups.errors import CheckpointError
from ups.files import replacing

FORMAT_VERSION = 1
FIXED_SECTIONS = ("latent", "encoder", "operator")


def save(path: Path, config: RunConfig, state: dict[str, Any]) -> None:
    """Write a checkpoint; a reader, or a crash, never sees half of one."""
    record = {
        "format": FORMAT_VERSION,
        "config": config.model_dump_json(),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        **state,
    }
    with replacing(path) as file:
        torch.save(record, file)


def load(path: Path, device: str = "cpu", *, mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint onto a device.

    Args:
        mmap: leave the tensors in the file until they are read.
    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    try:
        record: dict[str, Any] = torch.load(path, map_location=device, weights_only=True, mmap=mmap)
    except FileNotFoundError as error:
        raise CheckpointError(f"no checkpoint {path}: correct the path, or start anew") from error
    except Exception as error:
        raise CheckpointError(
            f"{path} is not a checkpoint that can be read: {error}; delete it, or start anew"
        ) from error
    found = record.get("format") if isinstance(record, dict) else None
    if found != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format {found}, expected {FORMAT_VERSION}: "
            "it is of another version of this project; use that one, or start anew"
        )
    return record


def check_fits(path: Path, record: dict[str, Any], config: RunConfig) -> None:
    """Refuse a checkpoint that this run cannot go on from.

    Raises:
        CheckpointError: it is of another model.
    """
    saved = json.loads(record["config"])
    task = saved["data"]["task"]  # one equation by its name, or a list of problems
    equations = in_order([task] if isinstance(task, str) else [t["equation"] for t in task])
    if equations != config.data.equations:
        raise CheckpointError(
            f"{path} was trained on {', '.join(equations)}, and this run has "
            f"{', '.join(config.data.equations)}: the operator is told other parameters; resume "
            "with tasks of the same equations, or start anew"
        )
    for section in FIXED_SECTIONS:
        now = config.model_dump(mode="json")[section]
        if saved[section] != now:
            raise CheckpointError(
                f"{path} was trained with {section} {saved[section]}, and this run has {now}: "
                "resume with the config it was made with, or start anew"
            )


def restore_rng(record: dict[str, Any]) -> None:
    """Set torch's random state to what it was when the checkpoint was written."""
    torch.set_rng_state(record["rng"].cpu())
    if record["cuda_rng"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([state.cpu() for state in record["cuda_rng"]])
