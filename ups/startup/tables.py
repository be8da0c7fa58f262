"""A comparison, or what changed between two benchmarks, in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ups.startup import wording
from ups.startup.compare import Changes, Comparison
from ups.startup.criteria import Criterion, criteria_rows
from ups.startup.records import BenchmarkRecord
from ups.startup.rows import (
    Row,
    change_rows,
    comparison_rows,
    headings,
    is_number,
    phase_rows,
    share_rows,
)


def show(
    comparison: Comparison,
    console: Console | None = None,
    criteria: Sequence[Criterion] = (),
) -> None:
    """Print the verdict, the comparison, each scenario's phases and each optimisation's worth."""
    console = console or Console(highlight=False)
    record = comparison.record
    _say(console, wording.headline(comparison))
    if warning := wording.other_load(comparison):
        _say(console, warning)
    for line in wording.news(comparison):
        _say(console, f"  {line}")
    _print_table(console, "Startup", comparison_rows(comparison))
    for scenario in comparison.scenarios:
        title = f"{scenario.name}: {wording.spread(scenario.ttfs)}"
        _print_table(console, title, phase_rows(scenario))
        _say(console, f"critical path  {wording.path(scenario.path)}")
        _say(console, f"work on next   {wording.next_phase(scenario)}")
    _print_table(console, "What each optimisation is worth", share_rows(comparison))
    _print_table(console, "What is asked of it", criteria_rows(criteria))
    _say(console, "")
    _say(console, f"benchmark  {_named(record)}")
    _say(console, f"machine    {wording.facts(record.machine)}")
    _say(console, f"versions   {wording.facts(record.versions)}")
    _say(console, f"settings   {wording.facts(record.settings)}")


def show_changes(changes: Changes, console: Console | None = None) -> None:
    """Print before, after and difference of every phase; first why they cannot be compared."""
    console = console or Console(highlight=False)
    _say(console, f"before  {_named(changes.before)}")
    _say(console, f"after   {_named(changes.after)}")
    if changes.reasons:
        _say(console, f"Not comparable: {'; '.join(changes.reasons)}")
    _print_table(console, "What changed", change_rows(changes))


def _named(record: BenchmarkRecord) -> str:
    return f"{record.id}, {wording.moment(record.started_at)}, commit {record.commit}"


def _print_table(console: Console, title: str, rows: Sequence[Row]) -> None:
    if not rows:
        return
    table = Table(title=escape(title), title_justify="left")
    for name in headings(rows):
        table.add_column(name, justify="right" if is_number(name) else "left")
    for row in rows:
        table.add_row(*(escape(text) for text in row.values()))
    console.print("")
    console.print(table)


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, soft_wrap=True)
