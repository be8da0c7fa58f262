"""A comparison as Markdown, pictures included, for one artifact in the UI."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ups.runs.table import markdown_image, markdown_table
from ups.startup.judge.compare import Comparison, ScenarioSummary
from ups.startup.show import wording
from ups.startup.show.tables import (
    FIGURES,
    NEXT,
    RUNS,
    WHAT_BOUNDS,
    comparison_rows,
    criteria_rows,
    phase_rows,
    share_rows,
)
from ups.units import format_time

Link = Callable[[str], str]  # flow run id → its address in the UI

NOTES = """\
- *Against history*: the median against those of earlier benchmarks on this machine with these \
settings. What counts as worse depends on how much benchmarks scattered; while there are few, a \
scatter is assumed (`thresholds.between`), and only a large change can be told.
- *Idle until epoch 2*: of the time from the trigger to the end of the first epoch the part in \
which the device had no step to compute, waits for rows included. A step that reads its batch from \
files counts as one that computes. Its limit is wider, so that judging it beside the time to first \
step raises no more false alarms.
- Times are medians, [smallest–largest] beside them; intervals of ratios and differences are 95 % \
bootstrap intervals. Of few runs a side these are too narrow: of 3 they hold the truth in 90 % of \
cases, of 2 in 67 %. *legacy takes*: how many times as long.
- Phases overlap. *On the critical path* counts only what the first step waited for, in the run or \
the two runs around the median, and adds up to the time to first step; what is below 1 % of it is \
left out of the path's text.
- *Bound*: the least time that this machine needs for the phase's bytes (download: fetched from \
the store; cache: written and flushed, not encoded; load: read), and how many times that the phase \
took. Of the other phases no bound is measured: they count in full in *work on next*, and the \
first phase that has one is named behind them.
- Before each run as much memory as it takes was touched and let go of: a virtual machine's host \
takes back what its guest has freed, and whoever comes next would pay for it."""


def to_markdown(comparison: Comparison, pictures: Mapping[str, bytes], link: Link) -> str:
    """The whole artifact, what got worse before all else.

    Args:
        pictures: name → PNG, as `pictures.draw` gives them.
    """
    warning = wording.other_load(comparison)
    rows = comparison_rows(comparison)
    for row, scenario in zip(rows, comparison.scenarios, strict=True):
        ids = enumerate(scenario.flow_run_ids, start=1)
        del row[NEXT]  # said below, with the reason; the UI breaks no line of a table
        row[RUNS] = " ".join(f"[{number}]({link(run_id)})" for number, run_id in ids)
    shares, criteria = share_rows(comparison), criteria_rows(comparison.criteria)
    phases, trend, worth = (pictures.get(name) for name in ("phases", "trend", "shares"))
    parts = [
        f"# {wording.headline(comparison)}",
        f"**{warning}.**" if warning else "",
        "\n".join(f"- {line}" for line in wording.news(comparison)),
        markdown_table(rows, right=FIGURES),
        markdown_image("Phases of the time to first step", phases) if phases else "",
        "## What each optimisation is worth" if shares else "",
        markdown_image("Seconds that each optimisation is worth", worth) if worth else "",
        markdown_table(shares, right=FIGURES),
        "## What is asked of it" if criteria else "",
        markdown_table(criteria, right=FIGURES),
        "## Trend" if trend else "",
        markdown_image("Time to first step over time", trend) if trend else "",
        "## Where the time goes",
        *(_breakdown(scenario, link) for scenario in comparison.scenarios),
        "## How it was measured",
        _provenance(comparison, link),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _breakdown(scenario: ScenarioSummary, link: Link) -> str:
    """Its table; what bounds a phase stands below it, as the UI breaks no line of a table."""
    rows = phase_rows(scenario)
    bounds = {row["phase"]: row.pop(WHAT_BOUNDS) for row in rows}
    return "\n\n".join(
        [
            f"### {scenario.name}: {wording.spread(scenario.ttfs)}",
            f"- **Work on next** {wording.next_phase(scenario)}\n"
            f"- **Critical path** of the [run at the median]({link(scenario.middle)}): "
            f"{wording.path(scenario.path)}",
            markdown_table(rows, right=FIGURES),
            "\n".join(f"- {phase}: {words}" for phase, words in bounds.items() if words),
        ]
    )


def _provenance(comparison: Comparison, link: Link) -> str:
    record = comparison.record
    run = f" in [this flow run]({link(record.flow_run_id)})" if record.flow_run_id else ""
    return f"""\
- benchmark `{record.id}`, {format_time(record.started_at)}{run}
- machine `{record.machine_id}`: {wording.facts(record.machine)}
- versions: {wording.facts(record.versions)}
- commit `{record.commit}`
- settings: {wording.facts(record.settings)}
{NOTES}"""
