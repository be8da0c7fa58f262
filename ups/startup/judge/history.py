"""Every benchmark that was made, a JSON file each: what there was before, to compare with.

`history/<id>.json` is written anew after each run, in one piece: a reader finds the old text or
the new, and a loss of power costs at most the run in flight. A benchmark that was cut short has its
runs and no verdicts, and counts as history all the same. Fields of a later version are ignored.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from ups.errors import HistoryError
from ups.files import seal, sync_directory, unseal, write_atomically
from ups.startup.judge.verdict import Verdict
from ups.startup.measure.records import BenchmarkRecord

log = logging.getLogger(__name__)

NUM_SUGGESTED = 5
CSV_COLUMNS = (
    *("benchmark", "started_at", "commit", "machine_id", "scenario", "repeat", "flow_run_id"),
    *("triggered_at", "start_mode", "cache_reused", "ttfs_s", "idle_s", "waited_s"),
)
PHASE_COLUMNS = ("phase", "phase_s")


class JudgedBenchmark(BenchmarkRecord):
    """What a file of the history holds: a benchmark and, once all its runs are done, verdicts."""

    verdicts: tuple[Verdict, ...] = ()


class History:
    """The benchmarks that were made in a folder; an earlier version's file of them is converted.

    Raises:
        HistoryError: from every method, where a file cannot be read or written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "history"
        self._known: dict[str, tuple[tuple[int, ...], JudgedBenchmark]] = {}
        database = folder / "history.sqlite"  # of earlier versions
        if database.is_file() and not self.folder.is_dir():
            _convert(database, self.folder)

    def save(self, benchmark: BenchmarkRecord, verdicts: Sequence[Verdict] = ()) -> JudgedBenchmark:
        """Write a benchmark as it stands, with all its runs; on the disk when this returns."""
        judged = JudgedBenchmark(**{**dict(benchmark), "verdicts": tuple(verdicts)})
        path = self.folder / f"{judged.id}.json"
        try:
            write_atomically(path, seal(judged.model_dump_json(indent=1).encode()))
        except OSError as error:
            raise HistoryError(
                f"{path} cannot be written: {error}. Expected a folder that this process may write"
            ) from error
        return judged

    def benchmarks(self) -> tuple[JudgedBenchmark, ...]:
        """All of them, the newest first; a file is read again only where it has changed."""
        try:
            names = sorted(os.listdir(self.folder))
        except FileNotFoundError:
            names = []
        except OSError as error:
            raise HistoryError(f"{self.folder} cannot be read: {error}") from error
        found = [self._of_file(n) for n in names if n.endswith(".json") and n[0] != "."]
        return tuple(sorted(found, key=lambda b: (b.started_at, b.id), reverse=True))

    def benchmark(self, id_or_prefix: str) -> JudgedBenchmark:
        """The one of this id, else the only one whose id begins like this.

        Raises:
            HistoryError: no benchmark, or more than one, has an id that begins like this.
        """
        benchmarks = self.benchmarks()
        found = [b for b in benchmarks if b.id.startswith(id_or_prefix)]
        found = [b for b in found if b.id == id_or_prefix] or found
        if len(found) == 1:
            return found[0]
        ids = ", ".join(b.id for b in (found or benchmarks)[:NUM_SUGGESTED])
        if found:
            raise HistoryError(
                f"{len(found)} benchmarks in {self.folder} begin with {id_or_prefix!r} ({ids}): "
                "give more of the id"
            )
        known = f"the latest are {ids}" if ids else "it holds none yet"
        raise HistoryError(f"no benchmark in {self.folder} begins with {id_or_prefix!r}: {known}")

    def _of_file(self, name: str) -> JudgedBenchmark:
        path = self.folder / name
        try:
            stat = path.stat()
        except OSError:  # reading it says why
            return _read(path)
        state = stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino
        if name not in self._known or self._known[name][0] != state:
            self._known[name] = state, _read(path)
        return self._known[name][1]


def write_csv(path: Path, benchmarks: Sequence[BenchmarkRecord]) -> None:
    """Write a row per run and phase, in order of time; times named `_at` are Unix times."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*CSV_COLUMNS, *PHASE_COLUMNS))
    for benchmark in sorted(benchmarks, key=lambda benchmark: benchmark.started_at):
        for run in sorted(benchmark.runs, key=lambda run: run.triggered_at):
            known = {**dict(benchmark), **dict(run), "benchmark": benchmark.id}
            cells = [known[name] for name in CSV_COLUMNS]
            writer.writerows((*cells, *of_phase) for of_phase in run.phases.items())
    write_atomically(path, text.getvalue().encode())


def _read(path: Path) -> JudgedBenchmark:
    try:
        return JudgedBenchmark.model_validate_json(unseal(path.read_bytes()), extra="ignore")
    except (OSError, ValueError) as error:
        raise HistoryError(
            f"{path} cannot be read: {error}. Expected the record of a benchmark: mend the file, "
            "or move it away to go on without it"
        ) from error


def _convert(database: Path, folder: Path) -> None:
    """Write the benchmarks of an earlier version's SQLite file into `folder`: all, or none."""
    try:
        with tempfile.TemporaryDirectory(prefix=".history-", dir=folder.parent) as aside:
            history = History(Path(aside))
            history.folder.mkdir()
            for benchmark in _read_database(database):
                history.save(benchmark, benchmark.verdicts)
            history.folder.rename(folder)
            sync_directory(folder.parent)
    except (sqlite3.Error, OSError, ValueError) as error:
        if folder.is_dir():  # another process was faster
            return
        raise HistoryError(
            f"{database}: {error}. Expected the history of an earlier version, to convert it: "
            "move it away to begin a new history"
        ) from error
    log.info("converted %s into %s; the old file is not read any more", database, folder)


def _read_database(path: Path) -> Iterator[JudgedBenchmark]:
    def parsed(row: sqlite3.Row, *names: str) -> dict[str, Any]:
        return {**dict(row), **{name: json.loads(row[name]) for name in names}}

    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        ask = connection.execute
        for row in ask("SELECT * FROM benchmarks"):
            runs = []
            for run in ask("SELECT * FROM runs WHERE benchmark = ? ORDER BY id", (row["id"],)):
                query = "SELECT phase, seconds FROM phases WHERE run = ? ORDER BY rowid"
                phases = dict(ask(query, (run["id"],)).fetchall())
                runs.append({**parsed(run, "bounds", "bounds_s", "spans"), "phases": phases})
            query = "SELECT verdict FROM verdicts WHERE benchmark = ? ORDER BY rowid"
            verdicts = [json.loads(text) for (text,) in ask(query, (row["id"],))]
            benchmark = parsed(row, "machine", "versions", "settings")
            benchmark |= {"runs": runs, "verdicts": verdicts}
            yield JudgedBenchmark.model_validate(benchmark, extra="ignore")
