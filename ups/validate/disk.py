"""Room on the disks for what a run is going to write, and the right to write it there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path

from ups.config import RunConfig
from ups.data.letting_go import BACKLOG_BYTES, IN_FLIGHT_BYTES
from ups.data.stamps import beside
from ups.files import DISK_MARGIN_BYTES
from ups.machine.ranks import why_ranks_wait
from ups.units import format_size
from ups.validate.check import Check, Checks
from ups.validate.sources import (
    ITEM_BYTES,
    NUM_FRAMES,
    Known,
    Sources,
    latent_bytes,
    select,
    total_of,
)


def free_bytes(directory: Path) -> int:
    """On the file system of an existing directory."""
    return shutil.disk_usage(directory).free


def validate_disk(config: RunConfig, sources: Sources, *, to_build: Collection[str]) -> list[Check]:
    """What downloads and cache need, against what is free where they go.

    Args:
        to_build: the problems whose latents a run is going to encode, as far as that is known.
    """
    checks = Checks("disk")
    download = 0 if config.data.is_local else _download_bytes(config, sources, to_build)
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


def _download_bytes(config: RunConfig, sources: Sources, to_build: Collection[str]) -> int | None:
    """That downloads still have to allocate: what a partial one has is not asked for again.

    Without `data.keep_sources` that is what test is cut of, and what is on its way.
    """
    whole = {known.wanted.path: _still(known) for known in sources}
    may_stream = config.may_stream and not why_ranks_wait(config)
    streams = may_stream and len(to_build) == len(config.data.problems)
    without_blocks = {known.wanted.path for known in sources if not known.has_blocks}
    passing = whole.keys() - without_blocks
    if config.data.keep_sources or not streams or not passing:
        return total_of(whole.values())
    all_of_them = total_of(whole[path] for path in passing)
    of_test = [k for k in select(sources, ["test"]) if k.wanted.path in passing]
    if all_of_them is None:
        return None
    kept = sum(_test_bytes(config, known) for known in of_test)
    kept_whole = total_of([0, *(size for path, size in whole.items() if path not in passing)])
    least = min(all_of_them, kept + BACKLOG_BYTES + IN_FLIGHT_BYTES)
    return None if kept_whole is None else least + kept_whole


def _test_bytes(config: RunConfig, known: Known) -> int:
    """Of its rows."""
    if (rows := known.wanted.rows) is None:
        return known.fetch_bytes or 0
    return (rows[1] - rows[0]) * NUM_FRAMES * config.data.grid_points * ITEM_BYTES


def _still(known: Known) -> int | None:
    if not known.fetch_bytes:
        return known.fetch_bytes
    partial = beside(known.wanted.path, "part")
    present = partial.stat().st_blocks * 512 if partial.exists() else 0
    return max(0, known.fetch_bytes - present)


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
