"""The results of a kind of machine: `results/<kind>.json`, and the same as a Markdown table."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speed.harness import Comparison, Result

HEAD = ("phase", "unit", "this project", "peers", "bound", "ours to each", "target")


@dataclass(slots=True)
class Report:
    """The rows of all sections, and how each was measured.

    Attributes:
        machine: what ran it (`host.record`).
        measured: section → when, at which commit, in how many seconds, with which settings.
    """

    kind: str
    machine: dict[str, Any]
    measured: dict[str, dict[str, Any]] = field(default_factory=dict)
    comparisons: list[Comparison] = field(default_factory=list)

    def add(self, section: str, comparisons: Sequence[Comparison], how: Mapping[str, Any]) -> None:
        """Put a section's rows in, in place of those of an earlier run."""
        for row in comparisons:
            row.section = section
        others = [c for c in self.comparisons if c.section != section]
        self.comparisons = [*others, *comparisons]
        self.measured[section] = dict(how)

    def save(self, folder: Path, order: Sequence[str]) -> Path:
        """Write `<kind>.json` and `<kind>.md`, sections in this order; returns the JSON's path."""
        rank = {name: i for i, name in enumerate(order)}
        self.comparisons.sort(key=lambda c: rank.get(c.section, len(rank)))
        folder.mkdir(parents=True, exist_ok=True)
        record = {
            "kind": self.kind,
            "machine": self.machine,
            "measured": self.measured,
            "comparisons": [c.to_json() for c in self.comparisons],
        }
        path = folder / f"{self.kind}.json"
        path.write_text(json.dumps(record, indent=1) + "\n")
        (folder / f"{self.kind}.md").write_text(to_markdown(self))
        return path

    @classmethod
    def load_or_new(cls, folder: Path, kind: str, machine: dict[str, Any]) -> Report:
        """The report of this kind of machine, whose other sections stay; else an empty one."""
        path = folder / f"{kind}.json"
        if not path.exists():
            return cls(kind, machine)
        record = json.loads(path.read_text())
        comparisons = [Comparison.from_json(c) for c in record["comparisons"]]
        return cls(kind, machine, record["measured"], comparisons)


def to_markdown(report: Report) -> str:
    """A table a section, with its notes; the values are medians, [smallest–largest] beside them."""
    lines = [f"# Benchmarks: {report.kind}", ""]
    lines += [f"- {key}: {value}" for key, value in report.machine.items()]
    lines += ["", "Medians of alternated repeats, [smallest–largest] beside them; warm-ups are not"]
    lines += ["counted. *ours to each*: how many times as good ours is, of a bound the share."]
    for section in dict.fromkeys(c.section for c in report.comparisons):
        rows = [c for c in report.comparisons if c.section == section]
        how = report.measured.get(section, {})
        facts = ", ".join(f"{key} {value}" for key, value in how.items())
        lines += ["", f"## {section}", "", facts, ""]
        lines += ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
        lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
        notes = dict.fromkeys(note for row in rows for note in row.notes)
        lines += ["", *(f"- {note}" for note in notes)] if notes else []
    return "\n".join(lines) + "\n"


def cells(row: Comparison) -> tuple[str, ...]:
    """One comparison as the cells of its line."""
    peers = [_named(r) for r in row.results if r.role == "peer"]
    bounds = [_named(r) for r in row.results if r.role == "bound"]
    ours = [r for r in row.results if r.role == "ours"]
    mine = "; ".join(_named(r) if len(ours) > 1 else _figure(r) for r in ours)
    return (
        row.phase,
        row.unit,
        mine,
        "; ".join(peers),
        "; ".join(bounds),
        "; ".join(_ratio(row, r) for r in row.results if r.role != "ours"),
        "; ".join(_target(row, name, ok) for name, ok in row.reached().items()),
    )


def print_table(report: Report, sections: Sequence[str]) -> None:
    """The rows of these sections on the terminal."""
    from rich.console import Console
    from rich.table import Table

    title = f"{report.kind}, commit {report.machine.get('commit', '?')}"
    table = Table(title=title, show_lines=True)
    for name in HEAD:
        table.add_column(name, overflow="fold")
    for row in report.comparisons:
        if row.section in sections:
            table.add_row(*cells(row))
    console = Console()
    (console if console.is_terminal else Console(width=200)).print(table)


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0:
        return "0"
    digits = 0
    while abs(value) * 10**digits < 100 and digits < 6:
        digits += 1
    return f"{value:,.{digits}f}" if digits < 6 else f"{value:.2g}"


def _figure(result: Result) -> str:
    if result.failed is not None:
        return f"failed ({result.failed})"
    if result.spread is None:
        return "not run"
    spread = result.spread
    text = number(spread.median)
    if len(result.values) > 1:
        text += f" [{number(spread.smallest)}–{number(spread.largest)}]"
    else:
        text += " (one run)"
    extras = [f"{k} {number(statistics.median(v))}" for k, v in result.extras.items()]
    return f"{text} ({', '.join(extras)})" if extras else text


def _named(result: Result) -> str:
    return f"{result.name} {_figure(result)}"


def _ratio(row: Comparison, other: Result) -> str:
    ratio = row.ratio(other.name)
    if ratio is None:
        return f"{other.name} –"
    return f"{other.name} {ratio:.0%}" if other.role == "bound" else f"{other.name} {ratio:.2f}×"


def _target(row: Comparison, name: str, reached: bool | None) -> str:
    least = row.targets[name]
    bound = any(r.name == name and r.role == "bound" for r in row.results)
    asked = f"≥ {least:.0%}" if bound else f"≥ {least:g}×"
    verdict = {True: "reached", False: "missed", None: "not measured"}[reached]
    return f"{name} {asked}: {verdict}"
