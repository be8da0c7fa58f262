"""Every table of a comparison as rows of heading → text, for Markdown, terminal and artifacts."""

from __future__ import annotations

from collections.abc import Sequence

from ups.runs.breakdown import IDLE
from ups.startup.judge.change import Changes
from ups.startup.judge.compare import Comparison, ScenarioSummary
from ups.startup.judge.criteria import BASELINE, Criterion
from ups.startup.show import wording
from ups.startup.show.wording import NOTHING

Row = dict[str, str]

TTFS, BASELINE_TAKES, RUNS = "time to first step", f"{BASELINE} takes", "runs"
NEXT = "work on next"
BOUND, WHAT_BOUNDS = "bound", "what bounds it"
GROWS_BY = f"without it {TTFS} grows by"
IDLE_GROWS_BY = "idle grows by"
FIGURES = (
    *(TTFS, BASELINE_TAKES, RUNS, BOUND, GROWS_BY, "median", "on the critical path", "in percent"),
    *("before", "after", "difference", IDLE, IDLE_GROWS_BY),
)
MARKS = {True: "✓", False: "✗", None: "cannot tell"}


def comparison_rows(comparison: Comparison) -> list[Row]:
    """A row per scenario: medians, and what `legacy` takes as a multiple of its TTFS."""
    rows = [
        {
            "scenario": scenario.name,
            TTFS: wording.spread(scenario.ttfs),
            IDLE: NOTHING if scenario.idle is None else wording.spread(scenario.idle),
            BASELINE_TAKES: wording.times(scenario.to_baseline),
            "against history": wording.verdict(comparison, scenario.name),
            NEXT: wording.next_phases(scenario),
            RUNS: str(scenario.ttfs.num),
        }
        for scenario in comparison.scenarios
    ]
    return _without_silent(rows, IDLE)


def phase_rows(scenario: ScenarioSummary) -> list[Row]:
    """A row per phase of a scenario; without the columns that say nothing in every row."""
    rows = [
        {
            "phase": phase.phase,
            "median": wording.spread(phase.seconds),
            "on the critical path": wording.seconds(phase.critical_s or None),
            BASELINE_TAKES: wording.times(phase.to_baseline),
            BOUND: wording.bound(phase),
            WHAT_BOUNDS: wording.what_bounds(phase),
        }
        for phase in scenario.phases
    ]
    return _without_silent(rows, BASELINE_TAKES, BOUND)


def _without_silent(rows: Sequence[Row], *names: str) -> list[Row]:
    """The rows without those of these columns that say nothing in every row."""
    silent = [name for name in names if all(row[name] == NOTHING for row in rows)]
    return [{name: text for name, text in row.items() if name not in silent} for row in rows]


def share_rows(comparison: Comparison) -> list[Row]:
    """A row per optimisation: what its scenario took without it, and what to make of that."""
    rows = [
        {
            "optimisation": share.optimisation,
            "in scenario": share.base,
            GROWS_BY: wording.difference(share.seconds),
            "in percent": wording.percent(share.percent),
            IDLE_GROWS_BY: wording.difference(share.idle),
            "what it does": share.effect,
        }
        for share in comparison.shares
    ]
    return _without_silent(rows, IDLE_GROWS_BY)


def criteria_rows(criteria: Sequence[Criterion]) -> list[Row]:
    """A row per criterion: who asks for what, the figure, and whether that is enough."""
    return [
        {
            "asked by": criterion.source,
            "what": criterion.asks,
            "target": criterion.target,
            "measured": criterion.measured,
            "met": MARKS[criterion.is_met],
        }
        for criterion in criteria
    ]


def change_rows(changes: Changes) -> list[Row]:
    """A row per scenario and phase, TTFS and idle seconds first."""
    return [
        {
            "scenario": row.scenario,
            "phase": row.phase or TTFS,
            "before": NOTHING if row.before is None else wording.spread(row.before),
            "after": NOTHING if row.after is None else wording.spread(row.after),
            "difference": wording.difference(row.seconds),
        }
        for row in changes.rows
    ]
