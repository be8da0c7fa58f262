"""What sources have in common and should not: a place on the disk, trajectories."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

from ups.validate.check import Checks
from ups.validate.sources import MOST_LISTED, Known, Sources


def compare_sources(sources: Sources, checks: Checks) -> None:
    """Fault where two objects would become one local file, and warn where sources share rows."""
    by_path: dict[Path, Known] = {}
    by_content: dict[object, list[Known]] = {}
    for known in sources:
        by_path.setdefault(known.wanted.path, known)
        by_content.setdefault(known.sha256 or _file_of(known.wanted.path), []).append(known)
    for known in sources:
        path = known.wanted.path
        for place in (path, *path.parents):
            if (other := by_path.get(place)) is not None and other.place != known.place:
                text = f"{known.wanted.uri} would be staged as {path}, and {other.wanted.uri} as "
                text += f"{place}: they cannot both be there, give one of them another key"
                checks.fault(f"{known.label} sources", text)
    pairs = (itertools.combinations(same, 2) for same in by_content.values())
    if shared := [line for pair in itertools.chain(*pairs) for line in _shared_rows(*pair)]:
        more = f"; and {len(shared) - MOST_LISTED} more" if len(shared) > MOST_LISTED else ""
        text = f"{'; '.join(shared[:MOST_LISTED])}{more}: what is trained on tests nothing"
        checks.warn("shared rows", text)


def _file_of(path: Path) -> object:
    """What two names of one file have in common."""
    try:
        stat = path.stat()
    except OSError:
        return path
    return stat.st_dev, stat.st_ino


def _shared_rows(one: Known, other: Known) -> list[str]:
    """A line on the trajectories that are in two sources of the same content."""
    (first, end), (start, stop) = (known.wanted.rows or (0, math.inf) for known in (one, other))
    first, end = max(first, start), min(end, stop)
    if first >= end or (one.wanted.split == other.wanted.split and one.problem != other.problem):
        return []
    rows = "all rows" if end == math.inf else f"rows [{first}, {end})"
    same = "" if one.wanted.path == other.wanted.path else f" (the same as {other.wanted.uri})"
    return [f"{rows} of {one.wanted.uri}{same} are in {one.label} and in {other.label}"]
