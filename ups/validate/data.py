"""The data: are the objects there, and are the files that are staged fit to be trained on."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from ups.config import SPLITS, RunConfig, Split
from ups.data.frames import check_frames, check_frames_alike
from ups.data.pdebench import TrajectoryFile
from ups.data.seed import is_seeded_by_us
from ups.data.sources import open_file
from ups.errors import DataError, UpsError
from ups.units import format_size
from ups.validate.check import Check, Checks
from ups.validate.headers import header_name, look_into_headers
from ups.validate.shared import compare_sources
from ups.validate.sources import (
    Answers,
    Known,
    Place,
    Sources,
    ask_store,
    compared,
    find_sources,
    select,
)

STORE = "object store"


def validate_data(
    config: RunConfig, *, offline: bool = False, num_sampled: int = 32, timeout_s: float = 5.0
) -> tuple[list[Check], Sources]:
    """Look at objects, their headers, and files; no trajectory is downloaded.

    Args:
        offline: leave the object store alone.
        num_sampled: trajectories of each file to look into; 32 of PDEBench's are 26 MB.
        timeout_s: for all answers of the store together.
    Returns: the checks, and what they have found out about the sources.
    """
    checks, deadline = Checks("data"), time.monotonic() + timeout_s
    sources = find_sources(config, checks, to_seed=True)
    if not config.data.is_local:
        sources = _look_at_objects(config, sources, checks, offline, timeout_s)
    compare_sources(sources, checks)
    sources = [_look_into_file(config, known, checks, num_sampled) for known in sources]
    if not offline:
        left_s = max(0.0, deadline - time.monotonic())
        sources = look_into_headers(config, sources, checks, left_s)
    for split in SPLITS:
        _compare_frames(config, split, select(sources, [split]), checks)
    return checks, sources


def _look_at_objects(
    config: RunConfig, sources: list[Known], checks: Checks, offline: bool, timeout_s: float
) -> list[Known]:
    if offline:
        checks.skip(STORE, "offline, as asked for")
        return sources
    answers = ask_store(config, sources, timeout_s)
    if answers.denied is not None:
        checks.fault(STORE, answers.denied)
    elif answers.unreachable is not None and all(known.is_staged for known in sources):
        text = f"{answers.unreachable}; a run would take the staged files as they are"
        checks.warn(STORE, text)
    elif answers.unreachable is not None:
        checks.fault(STORE, answers.unreachable)
    else:
        return [
            known if known.place is None else _look_at_object(known, known.place, answers, checks)
            for known in sources
        ]
    return sources


def _look_at_object(known: Known, place: Place, answers: Answers, checks: Checks) -> Known:
    uri, name = known.wanted.uri, f"{known.label} object"
    if place in answers.refused:
        checks.fault(name, answers.refused[place])
    elif place in answers.missing and is_seeded_by_us(known.problem):
        size = format_size(known.num_bytes or 0)
        checks.ok(
            name,
            f"{uri} is not there yet: `ups run` generates it, {known.num_trajectories} "
            f"trajectories, {size}",
            num_bytes=known.num_bytes,
        )
    elif place in answers.missing:
        checks.fault(name, answers.missing[place])
    else:
        info = answers.found[place]
        known = compared(known, info)
        state = "staged" if known.is_staged else "to be fetched"
        text = f"{uri}: {format_size(info.num_bytes)}, {state}"
        figures = {"num_bytes": info.num_bytes, "sha256": info.sha256}
        if info.sha256 is not None:
            checks.ok(name, f"{text}, SHA-256 {info.sha256[:12]}… by its manifest", **figures)
        else:
            digest = "with the MD5 that is its ETag" if info.md5 else "with nothing"
            reason = f"no manifest has its SHA-256: what is fetched is compared {digest}"
            checks.warn(name, f"{text}; {reason}", **figures)
    return known


def _compare_frames(config: RunConfig, split: Split, sources: Sources, checks: Checks) -> None:
    """A batch holds trajectories of all files; those with a fault already have no frames to add."""
    faulty = {check.name for check in checks if check.status == "fault"}
    frames = [
        (known.wanted.uri, known.num_frames)
        for known in sources
        if known.is_read and not faulty & {_name(known), header_name(known)}
    ]
    try:
        check_frames_alike(config, frames)
    except DataError as error:
        checks.fault(f"{split} frames", str(error))


def _name(known: Known) -> str:
    return f"{known.label} file"


def _look_into_file(config: RunConfig, known: Known, checks: Checks, num_sampled: int) -> Known:
    """Shape, grid, parameter, times and a sample of the values, where the file is staged."""
    path, rows, name = known.wanted.path, known.wanted.rows, _name(known)
    if not path.is_file():
        checks.skip(name, f"{path} is not staged; its values are known when it is")
        return known
    if not known.is_staged:
        checks.skip(name, f"{path} is of another version of the object, and is fetched again")
        return known
    try:
        with open_file(config.of_problem(known.problem), path, rows) as file:
            shape = (file.num_trajectories, file.num_frames, file.grid_points)
            known = replace(known, num_trajectories=shape[0], num_frames=shape[1], is_read=True)
            if file.is_named:
                known = replace(known, parameter=file.parameter)
            check_frames(config, file.num_frames)
            bad, zero, num_read = _sample(file, num_sampled, first=rows[0] if rows else 0)
            equation, value = file.equation, file.parameter
            text = f"{path}: {shape}, {equation.symbol} {value:g}, dt {file.dt:g}"
            figures = {equation.parameter: value, "dt": file.dt, "num_sampled": num_read}
    except (UpsError, OSError) as error:
        checks.fault(name, str(error))
        return known
    if bad:
        listed = ", ".join(map(str, bad[:8]))
        text += (
            f"; NaN, infinite or fill values in trajectory {listed} ({len(bad)} of {num_read} "
            "sampled)"
        )
        checks.fault(name, f"{text}: fetch or generate it again, or leave those rows out", bad=bad)
        return known
    if zero:
        listed = ", ".join(map(str, zero[:8]))
        text += f"; trajectory {listed} ({len(zero)} of {num_read} sampled) is zero throughout"
        text += ": no error can be relative to it"
        checks.warn(name, text, shape=shape, zero=zero, **figures)
        return known
    checks.ok(name, f"{text}; {num_read} sampled, all finite", shape=shape, **figures)
    return known


def _sample(file: TrajectoryFile, num: int, *, first: int) -> tuple[list[int], list[int], int]:
    """Rows of the file that no field has, those that are zero, and how many were read of it.

    Args:
        num: rows to read, spread over the file.
        first: row of the file that the source begins with.
    """
    bad, zero = [], []
    chosen = np.unique(np.linspace(0, file.num_trajectories - 1, num).round().astype(int)).tolist()
    for row in chosen:
        frames = file.read(row, row + 1)
        if file.find_bad(frames).any():
            bad.append(first + row)
        elif not frames.any():
            zero.append(first + row)
    return bad, zero, len(chosen)
