"""Room on the disks for what a run is going to write, and the right to write it there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from ups.config import Parsed
from ups.files import DISK_MARGIN_BYTES
from ups.units import format_size
from ups.validate.check import Check, Checks, with_defaults
from ups.validate.sources import Sources, disk_bytes, latent_bytes

LATENT_KEYS = ("latent", "training.latent_cache_dtype")


def free_bytes(directory: Path) -> int:
    """On the file system of an existing directory."""
    return shutil.disk_usage(directory).free


def validate_disk(
    parsed: Parsed,
    sources: Sources,
    *,
    to_build: Collection[str],
    free: Callable[[Path], int] = free_bytes,
) -> list[Check]:
    """What downloads and cache need, against what is free where they go.

    Args:
        to_build: the tasks whose latents a run is going to encode, as far as that is known.
        free: as `free_bytes`.
    """
    config, checks = parsed.config, Checks("disk")
    are_local = all(task.sources is None for task in config.data.tasks)
    download = 0 if are_local else disk_bytes(sources)
    cache = latent_bytes(config, sources, to_build) if to_build else 0
    wanted = {
        "download": (config.data_root, download),
        "cache": (config.training.latent_cache_dir, cache),
    }
    for directory, num_bytes in wanted.values():
        _check_folder(directory, checks, is_written=num_bytes != 0)
    _check_folder(config.runs_dir, checks, is_written=True)
    file_systems: dict[int, list[str]] = {}
    for what in ("download", "cache"):
        device = _existing(wanted[what][0]).stat().st_dev
        file_systems.setdefault(device, []).append(what)
    note = with_defaults(parsed, LATENT_KEYS) if cache else ""
    for what_goes_there in file_systems.values():
        parts = {what: wanted[what][1] for what in what_goes_there if wanted[what][1] != 0}
        directory = wanted[what_goes_there[0]][0]
        _check_room(directory, parts, free(_existing(directory)), note, checks)
    return checks


def _check_room(
    directory: Path, parts: dict[str, int | None], free: int, note: str, checks: Checks
) -> None:
    needed = sum(num_bytes or 0 for num_bytes in parts.values())
    listed = ", ".join(
        f"{what} {'of unknown size' if size is None else format_size(size)}"
        for what, size in parts.items()
    )
    name = " and ".join(parts)
    figures = {"needed_bytes": needed, "free_bytes": free}
    if not parts:
        add = checks.warn if free < DISK_MARGIN_BYTES else checks.ok
        text = f"nothing to download or to build; {format_size(free)} free at {directory}"
        add("room", text, **figures)
    elif needed + DISK_MARGIN_BYTES > free:
        checks.fault(
            name,
            f"{listed}: need {format_size(needed)} and {format_size(DISK_MARGIN_BYTES)} that must "
            f"stay free, found {format_size(free)} free at {directory}; make room, or set "
            f"data.root and training.latent_cache_dir to a larger disk{note}",
            **figures,
        )
    elif None in parts.values():
        reason = f"{listed}; {format_size(free)} free at {directory}"
        checks.skip(name, f"{reason}{note}", **figures)
    else:
        checks.ok(name, f"{listed}; {format_size(free)} free at {directory}{note}", **figures)


def _check_folder(directory: Path, checks: Checks, *, is_written: bool) -> None:
    parent = _existing(directory)
    if not parent.is_dir():
        checks.fault(str(directory), f"{parent} is a file, expected a folder")
    elif is_written and not os.access(parent, os.W_OK | os.X_OK):
        checks.fault(str(directory), f"{parent} may not be written to")


def _existing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that is there."""
    absolute = path.absolute()
    return next(p for p in (absolute, *absolute.parents) if p.exists())
