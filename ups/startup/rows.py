"""The rows of every table of a comparison: heading → text, for Markdown, terminal and artifacts."""

from __future__ import annotations

from collections.abc import Sequence

from ups.startup import wording
from ups.startup.compare import BASELINE, Changes, Comparison, PhaseSummary, ScenarioSummary
from ups.startup.wording import NOTHING

Row = dict[str, str]

TTFS = "time to first step"
BASELINE_TAKES = f"{BASELINE} takes"
RUNS = "runs"
TEXTS = (
    "scenario",
    "phase",
    "against history",
    "work on next",
    "optimisation",
    "in scenario",
    "what it does",
    "asked by",
    "what",
    "target",
    "measured",
    "met",
)
WORDS = "what bounds it"


def comparison_rows(comparison: Comparison) -> list[Row]:
    """A row per scenario: median TTFS, and what `legacy` takes as a multiple of it."""
    return [
        {
            "scenario": scenario.name,
            TTFS: wording.spread(scenario.ttfs),
            BASELINE_TAKES: wording.times(scenario.to_baseline),
            "against history": wording.verdict(comparison, scenario.name),
            "work on next": wording.next_phases(scenario),
            RUNS: str(scenario.ttfs.num),
        }
        for scenario in comparison.scenarios
    ]


def phase_rows(scenario: ScenarioSummary) -> list[Row]:
    """A row per phase of a scenario; without the columns that say nothing in every row."""
    rows = [_phase_row(phase) for phase in scenario.phases]
    silent = [name for name in (BASELINE_TAKES, "bound") if all(r[name] == NOTHING for r in rows)]
    return [{name: text for name, text in row.items() if name not in silent} for row in rows]


def _phase_row(phase: PhaseSummary) -> Row:
    return {
        "phase": phase.phase,
        "median": wording.spread(phase.seconds),
        "on the critical path": wording.seconds(phase.critical_s) if phase.critical_s else NOTHING,
        BASELINE_TAKES: wording.times(phase.to_baseline),
        "bound": wording.bound(phase),
        WORDS: wording.what_bounds(phase),
    }


def share_rows(comparison: Comparison) -> list[Row]:
    """A row per optimisation: what its scenario took without it, and what to make of that."""
    return [
        {
            "optimisation": share.optimisation,
            "in scenario": share.base,
            f"without it {TTFS} grows by": wording.difference(share.seconds),
            "in percent": wording.percent(share.percent),
            "what it does": share.effect,
        }
        for share in comparison.shares
    ]


def change_rows(changes: Changes) -> list[Row]:
    """A row per scenario and phase, TTFS first."""
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


def is_number(heading: str) -> bool:
    """Whether a column holds figures, which stand on the right."""
    return heading not in (*TEXTS, WORDS)


def headings(rows: Sequence[Row]) -> list[str]:
    return list(rows[0]) if rows else []
