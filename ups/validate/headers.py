"""The headers of objects that are not staged: some KB of each, by ranges, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ups.background import Background, at_once
from ups.config import RunConfig
from ups.data.frames import check_frames
from ups.data.sources import open_file
from ups.errors import CannotStream, UpsError
from ups.validate.check import Checks
from ups.validate.sources import NUM_THREADS, Known, Place, Sources

if TYPE_CHECKING:
    from ups.data.coming import ComingObject

WHEN = "its shape and values are known when it is here"


@dataclass(frozen=True, slots=True)
class _Header:
    """What an object says of its rows that belong to the split; `text` for people."""

    shape: tuple[int, int, int]
    parameter: float
    is_named: bool
    streams: bool
    text: str


@dataclass(slots=True)
class _Read:
    """What is known so far: of each object, and of each source; errors among them."""

    objects: dict[Place, ComingObject | UpsError] = field(default_factory=dict)
    headers: dict[int, _Header | UpsError | OSError] = field(default_factory=dict)


def look_into_headers(
    config: RunConfig, sources: Sources, checks: Checks, timeout_s: float
) -> list[Known]:
    """Shape, grid, parameter and times of what the store has and this machine has not.

    Args:
        timeout_s: for all of them; those not read by then are said to be unknown.
    """
    read, deadline = _Read(), time.monotonic() + timeout_s
    if any(map(_is_there, sources)):
        # h5py has one lock, which who waits for a range holds: files are looked into before.
        reading = Background(lambda: _read(config, sources, read, deadline), "read headers")
        if reading.is_done(timeout_s):
            reading.result()
    headers = dict(read.headers)  # the thread may still write into that
    return [
        _judged(config, known, headers.get(i), checks) if _is_there(known) else known
        for i, known in enumerate(sources)
    ]


def header_name(known: Known) -> str:
    """What the check of a source's header is called."""
    return f"{known.label} header"


def _is_there(known: Known) -> bool:
    is_found = known.place is not None and known.is_exact and known.num_bytes is not None
    return is_found and not known.is_staged


def _read(config: RunConfig, sources: Sequence[Known], read: _Read, deadline: float) -> None:
    from ups.data.coming import ComingObject
    from ups.data.objectstore import ObjectStore
    from ups.data.s3errors import Retry

    store = ObjectStore(config.data.endpoint_url, retry=Retry(attempts=1, lasting_s=0))
    paths = {known.place: known.wanted.path for known in sources if _is_there(known)}

    def ask(place: Place) -> None:
        if time.monotonic() < deadline:
            try:
                read.objects[place] = ComingObject(store, *place, paths[place])
            except UpsError as error:
                read.objects[place] = error

    at_once(ask, [place for place in paths if place is not None], NUM_THREADS, None, "headers")
    for i, known in enumerate(sources):
        coming = None if known.place is None else read.objects.get(known.place)
        if coming is None or not _is_there(known) or time.monotonic() > deadline:
            continue
        try:
            read.headers[i] = coming if isinstance(coming, UpsError) else _of(config, known, coming)
        except (UpsError, OSError) as error:
            read.headers[i] = error
    store.close()


def _of(config: RunConfig, known: Known, coming: ComingObject) -> _Header:
    """What a header says.

    Raises:
        DataError: it is not one that can be trained on.
        FetchError, ObjectUnavailable: the store does not give more of it.
    """
    path, rows = known.wanted.path, known.wanted.rows
    own = config.of_problem(known.problem)
    with open_file(own, path, rows, coming, header_only=True) as file:
        shape = (file.num_trajectories, file.num_frames, file.grid_points)
        text = f"{shape}, {file.equation.symbol} {file.parameter:g}, dt {file.dt:g}"
        return _Header(shape, file.parameter, file.is_named, file.is_contiguous, text)


def _judged(
    config: RunConfig, known: Known, header: _Header | Exception | None, checks: Checks
) -> Known:
    name, uri = header_name(known), known.wanted.uri
    if header is None:
        checks.skip(name, f"{uri}: it was not read in time (see --timeout); {WHEN}")
        return known
    if isinstance(header, CannotStream):
        checks.skip(name, f"{uri}: it cannot be read alone: {header}; {WHEN}")
        return known
    if isinstance(header, Exception):
        checks.fault(name, str(header).replace(str(known.wanted.path), uri))
        return known
    num, num_frames, _ = header.shape
    known = replace(known, num_trajectories=num, num_frames=num_frames, is_read=True)
    if header.is_named:
        known = replace(known, parameter=header.parameter)
    figures = {"shape": header.shape, "parameter": header.parameter, "streams": header.streams}
    text = f"{uri}: {header.text}, by its header"
    try:
        check_frames(config, num_frames)
    except UpsError as error:
        checks.fault(name, f"{uri}: {error}", **figures)
        return known
    if header.streams:
        checks.ok(name, text, **figures)
    elif config.features.stream == "on":
        text += "; features.stream: found on, but it is in chunks, or not float32: set it to auto"
        checks.fault(name, text, **figures)
    else:
        text += "; in chunks, or not float32: all of it is fetched before training begins"
        checks.ok(name, text, **figures)
    return known
