"""Room on the disks for what a run is going to write, and the right to write it there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path

from ups.config import RunConfig
from ups.files import DISK_MARGIN_BYTES
from ups.units import format_size
from ups.validate.check import Check, Checks
from ups.validate.sources import Sources, disk_bytes, latent_bytes


def free_bytes(directory: Path) -> int:
    """On the file system of an existing directory."""
    return shutil.disk_usage(directory).free


def validate_disk(config: RunConfig, sources: Sources, *, to_build: Collection[str]) -> list[Check]:
    """What downloads and cache need, against what is free where they go.

    Args:
        to_build: the problems whose latents a run is going to encode, as far as that is known.
    """
    checks = Checks("disk")
    download = 0 if config.data.is_local else disk_bytes(sources)
    cache = latent_bytes(config, sources, to_build) if to_build else 0
    file_systems: dict[int, tuple[Path, dict[str, int | None]]] = {}
    for what, directory, num_bytes in (
        ("download", config.data_root, download),
        ("cache", config.training.latent_cache_dir, cache),
    ):
        _check_folder(directory, checks, is_written=num_bytes != 0)
        device = _existing(directory).stat().st_dev
        _, needed = file_systems.setdefault(device, (directory, {}))
        if num_bytes != 0:
            needed[what] = num_bytes
    _check_folder(config.runs_dir, checks, is_written=True)
    for directory, needed in file_systems.values():
        _check_room(directory, needed, free_bytes(_existing(directory)), checks)
    return checks


def _check_room(directory: Path, sizes: dict[str, int | None], free: int, checks: Checks) -> None:
    """Compare the sizes of what goes to one file system with what is free there."""
    needed = sum(num_bytes or 0 for num_bytes in sizes.values())
    listed = ", ".join(
        f"{what} {'of unknown size' if size is None else format_size(size)}"
        for what, size in sizes.items()
    )
    name = " and ".join(sizes)
    figures = {"needed_bytes": needed, "free_bytes": free}
    room = f"{format_size(free)} free at {directory}"
    if not sizes:
        add = checks.warn if free < DISK_MARGIN_BYTES else checks.ok
        add("room", f"nothing to download or to build; {room}", **figures)
    elif needed + DISK_MARGIN_BYTES > free:
        checks.fault(
            name,
            f"{listed}: need {format_size(needed)} and {format_size(DISK_MARGIN_BYTES)} that must "
            f"stay free, found {room}; make room, or set "
            "data.root and training.latent_cache_dir to a larger disk",
            **figures,
        )
    elif None in sizes.values():
        checks.skip(name, f"{listed}; {room}", **figures)
    else:
        checks.ok(name, f"{listed}; {room}", **figures)


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
