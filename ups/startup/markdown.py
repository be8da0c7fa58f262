"""A comparison as Markdown, pictures included, for one artifact in the UI."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence

from ups.startup import wording
from ups.startup.compare import Comparison, ScenarioSummary
from ups.startup.criteria import Criterion, criteria_rows
from ups.startup.rows import (
    RUNS,
    WORDS,
    Row,
    comparison_rows,
    headings,
    is_number,
    phase_rows,
    share_rows,
)

Link = Callable[[str], str]  # flow run id → its address in the UI

NOTES = """\
- *Against history*: the median against those of earlier benchmarks on this machine with these \
settings. What counts as worse depends on how much benchmarks scattered; while there are few, a \
scatter is assumed (`thresholds.between`), and only a large change can be told.
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


def to_markdown(
    comparison: Comparison,
    pictures: Mapping[str, bytes],
    link: Link,
    criteria: Sequence[Criterion] = (),
) -> str:
    """The whole artifact, what got worse before all else.

    Args:
        pictures: name → PNG, as `pictures.draw` gives them.
    """
    parts = [f"# {wording.headline(comparison)}"]
    if warning := wording.other_load(comparison):
        parts.append(f"**{warning}.**")
    parts.append("\n".join(f"- {line}" for line in wording.news(comparison)))
    parts.append(_table(_linked(comparison, link)))
    if phases := pictures.get("phases"):
        parts.append(_image("Phases of the time to first step", phases))
    if comparison.shares:
        parts.append("## What each optimisation is worth")
        if shares := pictures.get("shares"):
            parts.append(_image("Seconds that each optimisation is worth", shares))
        parts.append(_table(share_rows(comparison)))
    if criteria:
        parts += ["## What is asked of it", _table(criteria_rows(criteria))]
    if trend := pictures.get("trend"):
        parts += ["## Trend", _image("Time to first step over time", trend)]
    parts.append("## Where the time goes")
    parts += [_breakdown(scenario, link) for scenario in comparison.scenarios]
    parts.append("## How it was measured")
    parts.append(_provenance(comparison, link))
    return "\n\n".join(part for part in parts if part) + "\n"


def _linked(comparison: Comparison, link: Link) -> list[Row]:
    rows = comparison_rows(comparison)
    for row, scenario in zip(rows, comparison.scenarios, strict=True):
        ids = enumerate(scenario.flow_run_ids, start=1)
        row[RUNS] = " ".join(f"[{number}]({link(run_id)})" for number, run_id in ids)
    return rows


def _breakdown(scenario: ScenarioSummary, link: Link) -> str:
    """Its table; what bounds a phase stands below it, as the UI breaks no line of a table."""
    rows = phase_rows(scenario)
    return "\n\n".join(
        [
            f"### {scenario.name}: {wording.spread(scenario.ttfs)}",
            f"- **Work on next** {wording.next_phase(scenario)}\n"
            f"- **Critical path** of the [run at the median]({link(scenario.middle)}): "
            f"{wording.path(scenario.path)}",
            _table([{k: v for k, v in row.items() if k != WORDS} for row in rows]),
            "\n".join(f"- {row['phase']}: {row[WORDS]}" for row in rows if row[WORDS]),
        ]
    )


def _provenance(comparison: Comparison, link: Link) -> str:
    record = comparison.record
    run = f" in [this flow run]({link(record.flow_run_id)})" if record.flow_run_id else ""
    lines = [
        f"- benchmark `{record.id}`, {wording.moment(record.started_at)}{run}",
        f"- machine `{record.machine_id}`: {wording.facts(record.machine)}",
        f"- versions: {wording.facts(record.versions)}",
        f"- commit `{record.commit}`",
        f"- settings: {wording.facts(record.settings)}",
        NOTES,
    ]
    return "\n".join(lines)


def _table(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    names = headings(rows)
    lines = ["| " + " | ".join(names) + " |"]
    lines.append("|" + "|".join("--:" if is_number(name) else ":--" for name in names) + "|")
    for row in rows:
        lines.append("| " + " | ".join(_escaped(text) for text in row.values()) + " |")
    return "\n".join(lines)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _image(text: str, png: bytes) -> str:
    return f"![{text}](data:image/png;base64,{base64.b64encode(png).decode()})"
