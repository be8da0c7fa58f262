"""The checkpoint that a run is told to go on from."""

from __future__ import annotations

from pathlib import Path

from ups.config import Parsed
from ups.errors import CheckpointError
from ups.units import format_size
from ups.validate.check import Check, Checks, replaced_among

SECTIONS = ("latent", "encoder", "operator")


def validate_checkpoint(parsed: Parsed, resume: Path | None) -> list[Check]:
    """It can be read, and is of the model of this config; its weights stay on the disk."""
    checks = Checks("checkpoint")
    if resume is None:
        checks.skip("resume", "none is named, training begins anew")
        return checks
    if not resume.is_file():  # known without torch
        checks.fault("resume", f"no checkpoint {resume}")
        return checks
    from ups.training import checkpoint

    try:
        record = checkpoint.load(resume, mmap=True)
        if not (faulty := replaced_among(parsed, SECTIONS)):
            checkpoint.check_fits(resume, record, parsed.config)
    except CheckpointError as error:
        checks.fault("resume", str(error))
        return checks
    position = record["position"]
    size = format_size(resume.stat().st_size)
    text = f"{resume}: {size}, epoch {position['epoch']}, step {position['step']}"
    if faulty:
        checks.skip("resume", f"{text}; whether it fits, since {', '.join(faulty)} is faulty")
    else:
        checks.ok("resume", f"{text}, of this model", epoch=position["epoch"])
    return checks
