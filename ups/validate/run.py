"""All checks of a config, and those of them that a run makes before it downloads anything."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ups.config import RunConfig
from ups.errors import ConfigError, InvalidConfig, UpsError, ValidationFailed
from ups.machine.devices import has_gpu_node
from ups.validate.cache import Found, finds_entries, to_build, validate_cache, without_cached
from ups.validate.check import GROUPS, Check, Checks, Group, Report
from ups.validate.disk import validate_disk
from ups.validate.memory import Memory, validate_ram_for_cache, validate_training_memory
from ups.validate.remote import validate_remote
from ups.validate.shared import compare_sources
from ups.validate.sources import Sources, find_sources
from ups.validate.training import (
    validate_checkpoint,
    validate_cluster,
    validate_device,
    validate_device_early,
    validate_library,
    validate_ranks,
)

log = logging.getLogger(__name__)


def validate(
    config: RunConfig,
    where: str,
    *,
    resume: Path | None = None,
    benchmarks: Path | None = None,
    **of_data: Any,
) -> Report:
    """Check all there is to check; what one group finds wrong keeps no other from being checked.

    Args:
        where: names the config in the report.
        resume: a checkpoint that the run is to go on from.
        benchmarks: folder of the startup benchmarks; default: the project's.
        of_data: options of `validate_data`.
    """
    from ups.validate.data import validate_data  # h5py, which the head of a run does without
    from ups.validate.estimate import validate_estimate

    checks: list[Check] = [*valid_config(where), *validate_library(config)]
    sources: Sources = []
    entries: Found = {}
    device = "cpu"
    with _guarded("data", checks):
        found, sources = validate_data(config, **of_data)
        checks += found
    with _guarded("cache", checks):
        found, entries = validate_cache(config, sources)
        checks += found
        found, hits = validate_remote(config, sources, entries)
        checks += found
        sources = without_cached(config, sources, {**entries, **hits})
    with _guarded("device", checks):
        found, device = validate_device(config)
        checks += [*found, *validate_ranks(config)]
        if not of_data.get("offline"):
            checks += validate_cluster(config)
    with _guarded("memory", checks):
        memory = Memory.of_this_machine(ask_gpu=device == "cuda")
        checks += validate_ram_for_cache(config, sources, device, memory)
        checks += validate_training_memory(config, sources, device, memory)
    with _guarded("disk", checks):
        checks += validate_disk(config, sources, to_build=to_build(entries))
    with _guarded("checkpoint", checks):
        checks += validate_checkpoint(config, resume, sources)
    with _guarded("estimate", checks):
        checks += validate_estimate(config, sources, entries=entries, folder=benchmarks)
    checks.sort(key=lambda check: GROUPS.index(check.group))
    return Report(config=where, checks=tuple(checks))


def valid_config(where: str) -> Checks:
    """The checks of a config that could be loaded."""
    checks = Checks("config")
    checks.ok("schema", f"{where}: keys, types and limits")
    checks.ok("rules", "the fields agree with each other")
    return checks


def invalid_config(given: str, error: ConfigError) -> Report:
    """The report on a config that could not be loaded: its faults, and nothing else.

    Args:
        given: the config, as asked for.
    """
    checks = Checks("config")
    if isinstance(error, InvalidConfig):
        given, reason = error.where, "the config has faults: correct them first"
        for fault in error.faults:
            key, _, text = fault.partition(": ")
            checks.fault(key, text)
    else:
        reason = "there is no config"
        checks.fault("file", str(error))
    text = f"not checked: {reason}"
    others = [Check(group=group, name=group, status="skip", text=text) for group in GROUPS[1:]]
    return Report(config=given, checks=(*checks, *others))


@contextmanager
def _guarded(group: Group, checks: list[Check]) -> Iterator[None]:
    """Checks that end in an error are a fault of their group, and the next group goes on."""
    try:
        yield
    except (UpsError, OSError) as error:
        faulty = Checks(group)
        faulty.fault(group, f"cannot be checked: {error}")
        checks += faulty


def require_valid(
    config: RunConfig,
    resume: Path | None = None,
    run_dir: Path | None = None,
    *,
    refused: UpsError | None = None,
) -> None:
    """Log the warnings of `check_head`, and raise its faults.

    Args:
        resume: a checkpoint to go on from.
        run_dir: of the run, if it has been there before: its own checkpoint comes first.
        refused: why the object store cannot be addressed, if it cannot.
    Raises:
        ValidationFailed: with all faults in one message, a line for each.
    """
    faults = [] if refused is None else [f"data, object store: {refused}"]
    for check in check_head(config, resume, run_dir):
        if check.status == "warn":
            log.warning("%s, %s: %s", check.group, check.name, check.text)
        elif check.status == "fault":
            faults.append(f"{check.group}, {check.name}: {check.text}")
    if faults:
        noun = "fault" if len(faults) == 1 else "faults"
        between = " " if len(faults) == 1 else "\n"
        found = f"{len(faults)} {noun}, found before anything was done:"
        raise ValidationFailed(between.join([found, *faults]))


def check_head(
    config: RunConfig, resume: Path | None = None, run_dir: Path | None = None
) -> list[Check]:
    """All that needs no network and reads no data, in some milliseconds.

    Torch is imported only to look into a checkpoint, or at a missing GPU.
    """
    checks = Checks("data")
    sources = find_sources(config, checks)
    compare_sources(sources, checks)
    device = "cuda" if config.training.device != "cpu" and has_gpu_node() else "cpu"
    memory = Memory.of_this_machine(ask_gpu=False)
    return [
        *validate_library(config),
        *checks,
        *validate_ram_for_cache(config, sources, device, memory),
        *validate_disk(config, sources, to_build=to_build(finds_entries(config, sources))),
        *validate_device_early(config),
        *validate_ranks(config),
        *validate_checkpoint(config, resume, sources, run_dir),
    ]
