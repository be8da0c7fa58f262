"""What a run checks before it downloads anything: all that needs no network and reads no data."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path

from ups.config import SPLITS, Parsed, Split
from ups.device import has_gpu_node
from ups.errors import DataError, UpsError, ValidationFailed
from ups.validate.check import Check, Checks
from ups.validate.checkpoint import validate_checkpoint
from ups.validate.config import validate_config
from ups.validate.device import validate_device, validate_device_early
from ups.validate.disk import validate_disk
from ups.validate.entry import finds_entries, to_build
from ups.validate.memory import Memory, validate_ram_for_cache
from ups.validate.sources import Known, Sources, on_this_machine, planned_of

log = logging.getLogger(__name__)


def require_valid(
    parsed: Parsed,
    resume: Path | None = None,
    *,
    refused: UpsError | None = None,
    ask_torch: bool = False,
) -> None:
    """
    Args:
        resume: a checkpoint to go on from.
        refused: why the object store cannot be addressed, if it cannot.
        ask_torch: whether it sees the device, also where importing it is not certain to be needed.
    Raises:
        ValidationFailed: with all faults in one message, a line for each.
    """
    faults = [] if refused is None else [f"data, object store: {refused}"]
    for check in check_head(parsed, resume, ask_torch=ask_torch):
        if check.status == "warn":
            log.warning("%s, %s: %s", check.group, check.name, check.text)
        elif check.status == "fault":
            faults.append(f"{check.group}, {check.name}: {check.text}")
    if faults:
        noun = "fault" if len(faults) == 1 else "faults"
        raise ValidationFailed(
            "\n".join([f"{len(faults)} {noun}, found before anything was done:", *faults])
        )


def check_head(
    parsed: Parsed, resume: Path | None = None, *, ask_torch: bool = False
) -> list[Check]:
    """Some milliseconds. Torch is imported only to look into a checkpoint, or at a missing GPU."""
    config = parsed.config
    checks, sources = _find_sources(parsed)
    device = "cuda" if config.training.device != "cpu" and has_gpu_node() else "cpu"
    memory = Memory.of_this_machine(ask_gpu=False)
    return [
        *validate_config(parsed),
        *checks,
        *validate_ram_for_cache(parsed, sources, device, memory),
        *validate_disk(parsed, sources, to_build=to_build(finds_entries(parsed, sources))),
        *(validate_device(parsed)[0] if ask_torch else validate_device_early(config)),
        *validate_checkpoint(parsed, resume),
    ]


def _find_sources(parsed: Parsed) -> tuple[list[Check], Sources]:
    """What files and stamps tell; local files that are missing are a fault at once."""
    checks, config = Checks("data"), parsed.config
    sources: dict[Split, list[Known]] = {}
    if "data" in parsed.replaced:
        return checks, sources
    for split, task in itertools.product(SPLITS, config.data.tasks):
        try:
            known = [on_this_machine(known) for known in planned_of(config, task, split)]
            sources.setdefault(split, []).extend(known)
        except DataError as error:
            checks.fault(config.data.label(task, split), str(error))
    return checks, sources
