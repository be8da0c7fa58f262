"""What `ups benchmark` and `ups report` print: a benchmark of the history, or what changed."""

from __future__ import annotations

import sys
from pathlib import Path

from pydantic_core import to_json
from rich.console import Console

from deployments.layout import PROJECT_DIR
from ups.console import print_table
from ups.errors import HistoryError
from ups.startup import tables, wording
from ups.startup.benchmark import FOLDER, HISTORY
from ups.startup.compare import Comparison, compare, diff
from ups.startup.criteria import as_data, check
from ups.startup.history import History
from ups.startup.records import BenchmarkRecord
from ups.startup.scenarios import BASES

LISTED = 20


def show_of_run(folder: Path | None, flow_run_id: str, as_json: bool) -> None:
    """The benchmark that a flow run made, if it got as far as a run."""
    if not ((folder or PROJECT_DIR / FOLDER) / HISTORY).is_file():
        return
    report = Report(folder)
    for record in report.history.benchmarks(LISTED):
        if record.flow_run_id == flow_run_id and record.runs:
            report.show([record.id], as_json)


class Report:
    """
    Args:
        folder: of the benchmarks; default: the project's.
    Raises:
        HistoryError: there is none yet.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = PROJECT_DIR / FOLDER if folder is None else folder
        path = self.folder / HISTORY
        if not path.is_file():
            raise HistoryError(f"no benchmarks in {self.folder}: `ups benchmark` makes one")
        self.history = History(path)
        # Not a terminal: wide enough that no cell has to be cut.
        self.console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)

    def show(self, ids: list[str], as_json: bool) -> None:
        """The latest, the one of this id, or the difference of two."""
        if len(ids) == 2:
            changes = diff(self.history.benchmark(ids[0]), self.history.benchmark(ids[1]))
            if as_json:
                self._print_json(changes)
            else:
                tables.show_changes(changes, self.console)
            return
        record = self.history.benchmark(ids[0]) if ids else self._latest()
        comparison = self._compare(record)
        criteria = check(comparison, record.runs)
        if as_json:
            self._print_json(as_data(comparison, criteria))
            return
        tables.show(comparison, self.console, criteria)
        pictures = self.folder / "reports" / record.id
        if pictures.is_dir():
            self.console.print(f"pictures  {pictures}", markup=False, soft_wrap=True)

    def show_list(self, as_json: bool) -> None:
        records = self.history.benchmarks(LISTED)
        if as_json:
            self._print_json([r.model_dump(exclude={"runs"}) for r in records])
            return
        if records:
            print_table([self._row(record) for record in records], right=("runs",))
        else:
            print(f"no benchmarks in {self.folder}")

    def _row(self, record: BenchmarkRecord) -> dict[str, str]:
        kinds = [verdict.kind for verdict in self.history.verdicts(record.id)]
        return {
            "id": record.id,
            "when": wording.moment(record.started_at),
            "commit": record.commit,
            "scenarios": ", ".join(dict.fromkeys(run.scenario for run in record.runs)),
            "runs": str(len(record.runs)),
            "verdicts": ", ".join(dict.fromkeys(kinds)) or "cut short",
        }

    def export(self, csv: Path | None, parquet: Path | None) -> None:
        if csv is not None:
            self.history.export_csv(csv)
        if parquet is not None:
            self.history.export_parquet(parquet)

    def _latest(self) -> BenchmarkRecord:
        found = self.history.benchmarks(1)
        if not found:
            raise HistoryError(f"no benchmarks in {self.folder}: `ups benchmark` makes one")
        return found[0]

    def _compare(self, record: BenchmarkRecord) -> Comparison:
        names = list(dict.fromkeys(run.scenario for run in record.runs))
        trend = [
            point
            for name in names
            for point in self.history.trend(record.machine_id, record.settings, name)
        ]
        return compare(record, BASES, self.history.verdicts(record.id), trend)

    def _print_json(self, value: object) -> None:
        print(to_json(value, indent=1, inf_nan_mode="null").decode())
