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

from ups.runs.breakdown import PROVISION, Span

log = logging.getLogger(__name__)

VARIABLE = "UPS_PROVISION"
CLAIMED = "provision.txt"  # in the run's folder


def note(path: Path, phase: str, start: float, end: float) -> None:
    """Add a phase; times are Unix times in seconds."""
    with path.open("a") as file:
        file.write(f"{phase} {start:.6f} {end:.6f}\n")


def claim(run_dir: Path) -> tuple[Span, ...]:
    """Take the phases that no run has taken yet, by their start; a retry finds its own again.

    A fault is logged: the run goes on without them.
    """
    claimed = run_dir / CLAIMED
    try:
        if given := os.environ.get(VARIABLE):
            _take(Path(given), claimed)
        return _read(claimed) if claimed.exists() else ()
    except (OSError, ValueError) as error:
        log.warning("the times of the machine's provisioning are left out: %s", error)
        return ()


def _take(given: Path, claimed: Path) -> None:
    """Move the file, perhaps to another file system; of several runs, one gets it."""
    aside = given.with_name(f"{given.name}.{os.getpid()}")
    try:
        given.rename(aside)
    except FileNotFoundError:
        return
    shutil.move(aside, claimed)


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
