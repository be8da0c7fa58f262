"""All checks of a config, whatever each of them comes to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ups.config import Parsed
from ups.errors import UpsError
from ups.validate.cache import validate_cache
from ups.validate.check import GROUPS, Check, Checks, Group, Report
from ups.validate.checkpoint import validate_checkpoint
from ups.validate.config import validate_config
from ups.validate.data import NUM_SAMPLED, TIMEOUT_S, validate_data
from ups.validate.device import validate_device
from ups.validate.disk import free_bytes, validate_disk
from ups.validate.entry import to_build
from ups.validate.estimate import validate_estimate
from ups.validate.memory import Memory, validate_ram_for_cache, validate_training_memory

T = TypeVar("T")


def validate(
    parsed: Parsed,
    *,
    resume: Path | None = None,
    offline: bool = False,
    num_sampled: int = NUM_SAMPLED,
    timeout_s: float = TIMEOUT_S,
    benchmarks: Path | None = None,
    memory: Memory | None = None,
    free: Callable[[Path], int] = free_bytes,
) -> Report:
    """Check all there is to check; what one group finds wrong keeps no other from being checked.

    Args:
        resume: a checkpoint that the run is to go on from.
        offline: leave the object store alone.
        num_sampled: trajectories of each file that are searched for NaN.
        timeout_s: for the object store's answers.
        benchmarks: folder of the startup benchmarks; default: the project's.
        memory, free: what is free in memory, and on the disk of a directory; default: what this
            machine says.
    """
    found, sources = _guarded(
        "data",
        lambda: validate_data(
            parsed, offline=offline, num_sampled=num_sampled, timeout_s=timeout_s
        ),
        lambda checks: (checks, {}),
    )
    checks = [*validate_config(parsed), *found]
    found, entries = _guarded(
        "cache", lambda: validate_cache(parsed, sources), lambda checks: (checks, {})
    )
    checks += found
    of_device, device = _guarded(
        "device", lambda: validate_device(parsed), lambda checks: (checks, "cpu")
    )

    def of_memory() -> list[Check]:
        free_now = memory or Memory.of_this_machine(ask_gpu=device == "cuda")
        return [
            *validate_ram_for_cache(parsed, sources, device, free_now),
            *validate_training_memory(parsed, sources, device, free_now),
        ]

    checks += _guarded("memory", of_memory, list)
    checks += _guarded(
        "disk",
        lambda: validate_disk(parsed, sources, to_build=to_build(entries), free=free),
        list,
    )
    checks += of_device
    checks += _guarded("checkpoint", lambda: validate_checkpoint(parsed, resume), list)
    checks += _guarded(
        "estimate",
        lambda: validate_estimate(parsed, sources, entries=entries, folder=benchmarks),
        list,
    )
    return Report(config=parsed.where, checks=tuple(checks))


def unreadable(where: str, error: UpsError) -> Report:
    """Of a config that is not there, or is no YAML: nothing else can be checked."""
    config = Checks("config")
    config.fault("file", str(error))
    checks = list(config)
    for group in GROUPS[1:]:
        others = Checks(group)
        others.skip(group, "there is no config")
        checks += others
    return Report(config=where, checks=tuple(checks))


def _guarded(group: Group, check: Callable[[], T], failed: Callable[[list[Check]], T]) -> T:
    """A check that ends in an error is a fault of its group, and the next group goes on."""
    try:
        return check()
    except (UpsError, OSError) as error:
        checks = Checks(group)
        checks.fault(group, f"cannot be checked: {error}")
        return failed(checks)
