"""What `ups benchmark` and `ups report` print: a benchmark of the history, or what changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ups import PROJECT_DIR
from ups.cli.console import print_json, print_table
from ups.errors import HistoryError
from ups.startup.judge.change import Changes, diff
from ups.startup.judge.compare import Comparison, compare
from ups.startup.judge.history import History, JudgedBenchmark, write_csv
from ups.startup.measure.records import FOLDER, BenchmarkRecord
from ups.startup.show import tables, wording
from ups.units import format_time

LISTED = 20


def show_of_run(folder: Path | None, flow_run_id: str, as_json: bool) -> None:
    """Print the benchmark that a flow run made, if it got as far as a run."""
    folder = folder or PROJECT_DIR / FOLDER
    for benchmark in History(folder).benchmarks():
        if benchmark.flow_run_id == flow_run_id and benchmark.runs:
            Report(folder).show([benchmark.id], as_json)


class Report:
    """The benchmarks of a folder, as a shell shows them.

    Args:
        folder: of the benchmarks; default: the project's.
    Raises:
        HistoryError: there is none yet.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = PROJECT_DIR / FOLDER if folder is None else folder
        self.history = History(self.folder)
        self.benchmarks = self.history.benchmarks()
        if not self.benchmarks:
            raise HistoryError(f"no benchmarks in {self.folder}: `ups benchmark` makes one")

    def show(self, ids: list[str], as_json: bool) -> None:
        """Print the latest, the one of this id, or the difference of two."""
        found = [self.history.benchmark(one) for one in ids] or [self.benchmarks[0]]
        if len(found) == 2:
            changes = diff(*found)
            print_json(changes) if as_json else show_changes(changes)
            return
        comparison = compare(found[0], self.benchmarks)
        if as_json:
            print_json(comparison)
            return
        show_comparison(comparison)
        pictures = self.folder / "reports" / found[0].id
        if pictures.is_dir():
            print(f"pictures   {pictures}")

    def show_list(self, as_json: bool) -> None:
        """Print the latest, a row each."""
        latest = self.benchmarks[:LISTED]
        if as_json:
            print_json([b.model_dump(exclude={"runs", "verdicts"}) for b in latest])
        else:
            print_table([_row(benchmark) for benchmark in latest], right=("runs",))
            print(f"in {self.folder.absolute()}")

    def export(self, csv: Path) -> None:
        """Write every phase of every run."""
        write_csv(csv, self.benchmarks)


def show_comparison(comparison: Comparison) -> None:
    """Print the verdict, the comparison, each scenario's phases and each optimisation's worth."""
    record = comparison.record
    print(wording.headline(comparison))
    if warning := wording.other_load(comparison):
        print(warning)
    for line in wording.news(comparison):
        print(f"  {line}")
    _print_rows("Startup", tables.comparison_rows(comparison))
    for scenario in comparison.scenarios:
        title = f"{scenario.name}: {wording.spread(scenario.ttfs)}"
        _print_rows(title, tables.phase_rows(scenario))
        print(f"critical path  {wording.path(scenario.path)}")
        print(f"work on next   {wording.next_phase(scenario)}")
    _print_rows("What each optimisation is worth", tables.share_rows(comparison))
    _print_rows("What is asked of it", tables.criteria_rows(comparison.criteria))
    print(f"\nbenchmark  {_named(record)}")
    print(f"machine    {wording.facts(record.machine)}")
    print(f"versions   {wording.facts(record.versions)}")
    print(f"settings   {wording.facts(record.settings)}")


def show_changes(changes: Changes) -> None:
    """Print before, after and difference of every phase; first why they cannot be compared."""
    print(f"before  {_named(changes.before)}")
    print(f"after   {_named(changes.after)}")
    if changes.reasons:
        print(f"Not comparable: {'; '.join(changes.reasons)}")
    _print_rows("What changed", tables.change_rows(changes))


def _row(benchmark: JudgedBenchmark) -> dict[str, str]:
    kinds = dict.fromkeys(verdict.kind for verdict in benchmark.verdicts)
    return {
        "id": benchmark.id,
        "when": format_time(benchmark.started_at),
        "commit": benchmark.commit,
        "scenarios": ", ".join(benchmark.scenarios),
        "runs": str(len(benchmark.runs)),
        "verdicts": ", ".join(kinds) or "cut short",
    }


def _named(record: BenchmarkRecord) -> str:
    return f"{record.id}, {format_time(record.started_at)}, commit {record.commit}"


def _print_rows(title: str, rows: Sequence[tables.Row]) -> None:
    if rows:
        print()
        print_table(rows, right=tables.FIGURES, title=title)
