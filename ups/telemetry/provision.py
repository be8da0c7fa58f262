"""What a rented machine did before its first run was triggered: clone, install, worker, deploy.

`UPS_PROVISION` names a file with a line for each phase, `clone 1795475000.25 1795475004.5`: name,
start and end as Unix times in seconds. The first run that starts on the machine takes the file into
its folder, where a retry of that run finds it again.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from ups.telemetry.phases import PROVISION, Span

log = logging.getLogger(__name__)

VARIABLE = "UPS_PROVISION"
KEPT = "provision.txt"


def note(path: Path, phase: str, start: float, end: float) -> None:
    """Add a phase; times are Unix times in seconds."""
    with path.open("a") as file:
        file.write(f"{phase} {start:.6f} {end:.6f}\n")


def claim(run_dir: Path) -> tuple[Span, ...]:
    """The phases that this run is the first after, by their start; none where there are none.

    A fault is logged: the run goes on without them.
    """
    kept = run_dir / KEPT
    try:
        if given := os.environ.get(VARIABLE):
            _take(Path(given), kept)
        return _read(kept) if kept.exists() else ()
    except (OSError, ValueError) as error:
        log.warning("the times of the machine's provisioning are left out: %s", error)
        return ()


def _take(given: Path, kept: Path) -> None:
    """Move the file, perhaps to another file system; of several runs, one gets it."""
    aside = given.with_name(f"{given.name}.{os.getpid()}")
    try:
        given.rename(aside)
    except FileNotFoundError:
        return
    shutil.move(aside, kept)


def _read(path: Path) -> tuple[Span, ...]:
    spans = []
    for line in path.read_text().splitlines():
        try:
            name, start, end = line.split()
            span = Span(phase=f"{PROVISION}/{name}", name=name, start=float(start), end=float(end))
        except ValueError:
            raise ValueError(f"{path}: found {line!r}, expected `phase start end`") from None
        spans.append(span)
    return tuple(sorted(spans, key=lambda span: span.start))
