"""What changed between two benchmarks, by scenario and phase, as data."""

from __future__ import annotations

from collections.abc import Sequence

from ups.config import Model
from ups.runs.breakdown import IDLE
from ups.runs.critical_path import in_order
from ups.startup.judge.compare import Spread
from ups.startup.judge.stats import Interval, bootstrap_difference
from ups.startup.measure.records import BenchmarkRecord, idle_seconds


class Change(Model):
    """What became of a phase, or with `phase=None` of TTFS; None where a benchmark lacks it.

    `phase=IDLE` are the idle seconds until the end of the first epoch, where any run knows them. Of
    a scenario that only one of them has, there are these two alone.
    """

    scenario: str
    phase: str | None
    before: Spread | None
    after: Spread | None
    seconds: Interval | None


class Changes(Model):
    """Two benchmarks beside each other, without their runs.

    Attributes:
        reasons: why their times cannot be compared, in words; empty where they can.
    """

    before: BenchmarkRecord
    after: BenchmarkRecord
    rows: tuple[Change, ...]
    reasons: tuple[str, ...]


def diff(before: BenchmarkRecord, after: BenchmarkRecord) -> Changes:
    """Per scenario TTFS, idle seconds and each phase: difference = after − before."""
    reasons = [] if before.machine_id == after.machine_id else ["they ran on different machines"]
    for setting in sorted({*before.settings, *after.settings}):
        old, new = before.settings.get(setting), after.settings.get(setting)
        if old != new:
            reasons.append(f"{setting} was {old}, then {new}")
    rows = []
    for name in dict.fromkeys((*before.scenarios, *after.scenarios)):
        was, now = before.runs_of(name), after.runs_of(name)
        rows.append(_change(name, None, [r.ttfs_s for r in was], [r.ttfs_s for r in now]))
        idle_s = idle_seconds(was), idle_seconds(now)
        if any(idle_s):
            rows.append(_change(name, IDLE, *idle_s))
        if was and now:
            for phase in in_order(phase for run in (*was, *now) for phase in run.phases):
                seconds = ([run.seconds(phase) for run in runs] for runs in (was, now))
                rows.append(_change(name, phase, *seconds))
    return Changes(
        before=before.model_copy(update={"runs": ()}),
        after=after.model_copy(update={"runs": ()}),
        rows=tuple(rows),
        reasons=tuple(reasons),
    )


def _change(name: str, phase: str | None, was: Sequence[float], now: Sequence[float]) -> Change:
    return Change(
        scenario=name,
        phase=phase,
        before=Spread.of(was) if was else None,
        after=Spread.of(now) if now else None,
        seconds=bootstrap_difference(now, was) if was and now else None,
    )
