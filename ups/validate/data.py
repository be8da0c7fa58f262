"""The data: are the objects there, and are the files that are staged fit to be trained on."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ups.config import SPLITS, Parsed, RunConfig, Split
from ups.data.pdebench import TrajectoryFile
from ups.data.seed import is_seeded_by_us, only_source
from ups.data.sources import open_file
from ups.errors import UpsError
from ups.units import format_size
from ups.validate.check import Check, Checks, replaced_among
from ups.validate.objects import Answers, look, place_of
from ups.validate.sources import Known, Sources, all_of, compared, on_this_machine, planned_of

NUM_SAMPLED = 32  # trajectories of a file: 26 MB of PDEBench's
TIMEOUT_S = 5.0
STORE = "object store"

_Found = dict[Split, list[Known]]


def validate_data(
    parsed: Parsed,
    *,
    offline: bool = False,
    num_sampled: int = NUM_SAMPLED,
    timeout_s: float = TIMEOUT_S,
) -> tuple[list[Check], Sources]:
    """Look at objects and files; nothing is downloaded.

    Args:
        offline: leave the object store alone.
        num_sampled: trajectories of each file that are read and searched for NaN.
        timeout_s: for all answers of the store together.
    Returns: the checks, and what they have found out about the sources.
    """
    checks = Checks("data")
    if "data" in parsed.replaced:
        checks.skip("sources", "data is faulty as a whole")
        return checks, {}
    found, data = _find(parsed, checks), parsed.config.data
    if any(task.sources is not None for task in data.tasks):
        found = _look_at_objects(parsed.config, found, checks, offline, timeout_s)
    sources = _look_into_files(parsed, found, checks, num_sampled)
    if isinstance(data.task, tuple) and "data.task" in parsed.replaced:
        checks.skip("other tasks", "data.task is faulty, so their data are not known")
        return checks, {}
    return checks, sources


def _find(parsed: Parsed, checks: Checks) -> _Found:
    """The sources of each split, as far as the config and this machine know them."""
    config, found = parsed.config, _Found()
    for split, task in itertools.product(SPLITS, config.data.tasks):
        label = config.data.label(task, split)
        if task.sources is not None and not task.sources.get(split):
            checks.skip(label, f"{config.data.key_of(task)}.sources.{split} is faulty")
            continue
        try:
            if is_seeded_by_us(task):
                only_source(config, task, split)
            known = [on_this_machine(known) for known in planned_of(config, task, split)]
            found.setdefault(split, []).extend(known)
        except UpsError as error:
            checks.fault(label, str(error))
    return found


def _look_at_objects(
    config: RunConfig, found: _Found, checks: Checks, offline: bool, timeout_s: float
) -> _Found:
    if offline:
        checks.skip(STORE, "offline, as asked for")
        return found
    answers = look(config, list(all_of(found)), timeout_s)
    if answers.denied is not None:
        checks.fault(STORE, answers.denied)
        return found
    if answers.unreachable is not None:
        if all(known.is_staged for known in all_of(found)):
            text = f"{answers.unreachable}; a run would take the staged files as they are"
            checks.warn(STORE, text)
        else:
            checks.fault(STORE, answers.unreachable)
        return found
    for split, of_split in found.items():
        of_split[:] = [
            _look_at_object(config, split, known, answers, checks)
            if place_of(known) is not None
            else known
            for known in of_split
        ]
    return found


def _look_at_object(
    config: RunConfig, split: Split, known: Known, answers: Answers, checks: Checks
) -> Known:
    place, uri = place_of(known), known.wanted.uri
    assert place is not None
    task = config.data.named(known.wanted.task)
    name = f"{config.data.label(task, split)} object"
    if place in answers.refused:
        checks.fault(name, answers.refused[place])
    elif place in answers.missing and is_seeded_by_us(task):
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
            reason = "no manifest has its SHA-256: it is taken while the bytes pass"
            checks.warn(name, f"{text}; {reason}", **figures)
    return known


def _look_into_files(
    parsed: Parsed, found: Mapping[Split, Sequence[Known]], checks: Checks, num_sampled: int
) -> Sources:
    result: _Found = {}
    for split, of_split in found.items():
        result[split] = [
            _look_into_file(parsed, split, known, checks, num_sampled) for known in of_split
        ]
        _compare_frames(parsed.config, split, result[split], checks)
    return result


def _compare_frames(
    config: RunConfig, split: Split, of_split: Sequence[Known], checks: Checks
) -> None:
    """A batch holds trajectories of all tasks, so they need the same number of frames."""
    staged = [known for known in of_split if known.wanted.path.is_file()]
    for task in config.data.tasks:
        frames = sorted({k.num_frames for k in staged if k.wanted.task == task.name})
        if len(frames) > 1:
            text = f"trajectories have {' and '.join(map(str, frames))} frames, expected one number"
            checks.fault(f"{config.data.label(task, split)} files", text)
    stride = config.training.time_stride
    left = {k.wanted.task: -(-k.num_frames // stride) for k in staged}
    if len(set(left.values())) > 1:
        listed = ", ".join(f"{name} {num}" for name, num in left.items())
        text = f"frames after training.time_stride {stride}: {listed}; expected the same of all"
        checks.fault(f"{split} tasks", text)


def _look_into_file(
    parsed: Parsed, split: Split, known: Known, checks: Checks, num_sampled: int
) -> Known:
    """Shape, grid, parameter, times and a sample of the values, where the file is staged."""
    path, data = known.wanted.path, parsed.config.data
    task = data.named(known.wanted.task)
    name = f"{data.label(task, split)} file"
    if not path.is_file():
        checks.skip(name, f"{path} is not staged; its shape and values are known when it is")
        return known
    if not known.is_staged:
        checks.skip(name, f"{path} is of another version of the object, and is fetched again")
        return known
    faulty = replaced_among(parsed, ["data.grid_points"])
    try:
        alone = parsed.config.of_task(task)
        with open_file(alone, path, known.rows, any_grid=bool(faulty)) as file:
            known = replace(
                known, num_trajectories=file.num_trajectories, num_frames=file.num_frames
            )
            _check_frames(parsed.config, file.num_frames)
            bad, num_read = _sample(file, num_sampled, known.rows)
            shape = (file.num_trajectories, file.num_frames, file.grid_points)
            equation, value = file.equation, file.parameter
            text = f"{path}: {shape}, {equation.symbol} {value:g}, dt {file.dt:g}"
            figures = {"shape": shape, equation.parameter: value, "dt": file.dt}
            figures["num_sampled"] = num_read
    except (UpsError, OSError) as error:
        checks.fault(name, str(error))
        return known
    if bad:
        rows = ", ".join(map(str, bad[:8]))
        text += f"; NaN or infinite values in trajectory {rows} ({len(bad)} of {num_read} sampled)"
        checks.fault(name, f"{text}: fetch or generate it again, or leave those rows out", bad=bad)
        return known
    unchecked = "; data.grid_points is faulty, so the grid is not compared" if faulty else ""
    checks.ok(name, f"{text}; {num_read} sampled, all finite{unchecked}", **figures)
    return known


def _check_frames(config: RunConfig, num_frames: int) -> None:
    from ups.latents.rows import check_frames

    check_frames(config, num_frames)


def _sample(file: TrajectoryFile, num: int, rows: tuple[int, int] | None) -> tuple[list[int], int]:
    """Rows of the file that are not finite, of `num` spread over it, and how many were read."""
    first = rows[0] if rows else 0
    chosen = np.unique(np.linspace(0, file.num_trajectories - 1, num).round().astype(int)).tolist()
    bad = [first + row for row in chosen if not np.isfinite(file.read(row, row + 1)).all()]
    return bad, len(chosen)
