"""Every benchmark that was made, in one SQLite file: what there was before, to compare with.

A run is durable when `add_run` returns: a loss of power costs at most the run in flight. A
benchmark that was cut short keeps its runs, has no verdicts, and counts as history all the same.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from ups.errors import HistoryError
from ups.files import exclusive_lock, sync_directory
from ups.startup import export, schema
from ups.startup.compare import Spread, TrendPoint
from ups.startup.records import BenchmarkRecord, RunRecord
from ups.startup.verdict import Verdict

BUSY_WAIT_S = 30.0
NUM_SUGGESTED = 5

_BENCHMARK = ("id", "started_at", "flow_run_id", "machine_id", "commit")
_BENCHMARK_JSON = ("machine", "versions", "settings")
_RUN = (
    *("scenario", "repeat", "flow_run_id", "triggered_at", "ttfs_s"),
    *("busy_cores", "start_mode", "cache_reused"),
)
_RUN_JSON = ("bounds", "bounds_s", "spans")


class History:
    """The file at `path`, on a local disk; it is made, or brought to the present schema, at once.

    No connection outlives a call, so one object serves any number of threads and survives a fork.

    Raises:
        HistoryError: from every method, where the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        lock = path.with_name(f"{path.name}.lock")
        try:
            # Two processes at once must neither migrate twice nor meet at the switch to WAL, for
            # which SQLite does not wait.
            with exclusive_lock(lock), self._connection() as connection:
                schema.migrate(connection, path)
                connection.execute("PRAGMA journal_mode = WAL")
                sync_directory(path.parent)  # SQLite does not, for a new file
        except OSError as error:
            raise HistoryError(f"{path}: {error}; expected a folder that is writable") from error

    def begin(self, benchmark: BenchmarkRecord) -> None:
        """Open a benchmark, to which runs are added as they are done.

        Args:
            benchmark: without runs.
        """
        assert not benchmark.runs, "runs are added one by one, each when it is done"
        values = benchmark.model_dump(mode="json", exclude={"runs"})
        values |= {name: canonical(values[name]) for name in _BENCHMARK_JSON}
        with self._transaction() as connection:
            _insert(connection, "benchmarks", values)

    def add_run(self, benchmark_id: str, run: RunRecord) -> None:
        values = run.model_dump(mode="json")
        phases = values.pop("phases")
        values |= {name: json.dumps(values[name]) for name in _RUN_JSON}
        with self._transaction() as connection:
            run_id = _insert(connection, "runs", {"benchmark": benchmark_id, **values})
            connection.executemany(
                "INSERT INTO phases (run, phase, seconds) VALUES (?, ?, ?)",
                [(run_id, phase, seconds) for phase, seconds in phases.items()],
            )

    def finish(self, benchmark_id: str, verdicts: Sequence[Verdict]) -> None:
        """Keep the verdicts and mark the benchmark as complete."""
        with self._transaction() as connection:
            for verdict in verdicts:
                kept = ("scenario", "kind", "phase", "before_s", "after_s")
                values = {name: getattr(verdict, name) for name in kept}
                values |= {"benchmark": benchmark_id, "verdict": verdict.model_dump_json()}
                _insert(connection, "verdicts", values)
            done = connection.execute(
                "UPDATE benchmarks SET is_complete = 1 WHERE id = ?", (benchmark_id,)
            )
            if done.rowcount != 1:
                raise HistoryError(f"{self.path} has no benchmark {benchmark_id}: begin it first")

    def benchmarks(self, limit: int = 20) -> tuple[BenchmarkRecord, ...]:
        """The latest, with their runs, newest first."""
        with self._connection() as connection:
            found = connection.execute(
                "SELECT * FROM benchmarks ORDER BY started_at DESC, rowid DESC LIMIT ?", (limit,)
            ).fetchall()
            return tuple(_benchmark(connection, row) for row in found)

    def benchmark(self, id_or_prefix: str) -> BenchmarkRecord:
        """
        Raises:
            HistoryError: no benchmark, or more than one, has an id that begins like this.
        """
        with self._connection() as connection:
            return _benchmark(connection, self._row(connection, id_or_prefix))

    def is_complete(self, id_or_prefix: str) -> bool:
        """Whether the benchmark got as far as its verdicts."""
        with self._connection() as connection:
            return bool(self._row(connection, id_or_prefix)["is_complete"])

    def verdicts(self, id_or_prefix: str) -> tuple[Verdict, ...]:
        """In the order in which they were given; empty for a benchmark that was cut short."""
        with self._connection() as connection:
            found = connection.execute(
                "SELECT verdict FROM verdicts WHERE benchmark = ? ORDER BY rowid",
                (self._row(connection, id_or_prefix)["id"],),
            )
            return tuple(Verdict.model_validate_json(row["verdict"]) for row in found)

    def benchmarks_before(
        self, benchmark: BenchmarkRecord, scenario: str, limit: int
    ) -> tuple[tuple[RunRecord, ...], ...]:
        """The scenario's runs of each earlier benchmark that has some, the newest benchmark first.

        Only those on the same machine with equal settings.

        Args:
            benchmark: need not be in the file.
            limit: of benchmarks.
        """
        with self._connection() as connection:
            found = connection.execute(
                "SELECT b.id FROM benchmarks b "
                "WHERE b.machine_id = ? AND b.settings = ? AND b.started_at < ? AND b.id != ? "
                "AND EXISTS (SELECT 1 FROM runs r WHERE r.benchmark = b.id AND r.scenario = ?) "
                "ORDER BY b.started_at DESC, b.rowid DESC LIMIT ?",
                (
                    benchmark.machine_id,
                    canonical(benchmark.settings),
                    benchmark.started_at,
                    benchmark.id,
                    scenario,
                    limit,
                ),
            ).fetchall()
            return tuple(_runs(connection, row["id"], scenario) for row in found)

    def trend(
        self, machine_id: str, settings: dict[str, Any], scenario: str
    ) -> tuple[TrendPoint, ...]:
        """A point per benchmark of this machine and these settings, in order of time."""
        with self._connection() as connection:
            found = connection.execute(
                "SELECT b.id, b.started_at, r.ttfs_s, v.kind FROM benchmarks b "
                "JOIN runs r ON r.benchmark = b.id LEFT JOIN verdicts v "
                "ON v.benchmark = b.id AND v.scenario = r.scenario "
                "WHERE b.machine_id = ? AND b.settings = ? AND r.scenario = ? "
                "ORDER BY b.started_at, b.rowid",
                (machine_id, canonical(settings), scenario),
            ).fetchall()
        points = []
        for _, of_benchmark in groupby(found, key=lambda row: row["id"]):
            rows = list(of_benchmark)
            points.append(
                TrendPoint(
                    scenario=scenario,
                    at=rows[0]["started_at"],
                    ttfs=Spread.of([row["ttfs_s"] for row in rows]),
                    worse=rows[0]["kind"] == "worse",
                )
            )
        return tuple(points)

    def export_csv(self, path: Path) -> None:
        """A row per run and phase; see `ups.startup.export`."""
        with self._connection() as connection:
            rows = export.rows(connection)
        export.write_csv(path, rows)

    def export_parquet(self, path: Path) -> None:
        """The same; needs the extra `parquet`."""
        with self._connection() as connection:
            rows = export.rows(connection)
        export.write_parquet(path, rows)

    def _row(self, connection: sqlite3.Connection, id_or_prefix: str) -> sqlite3.Row:
        found: list[sqlite3.Row] = connection.execute(
            "SELECT * FROM benchmarks WHERE substr(id, 1, length(?1)) = ?1 "
            "ORDER BY id != ?1, started_at DESC",
            (id_or_prefix,),
        ).fetchall()
        if len(found) == 1 or (found and found[0]["id"] == id_or_prefix):
            return found[0]
        if found:
            ids = ", ".join(row["id"] for row in found[:NUM_SUGGESTED])
            raise HistoryError(
                f"{len(found)} benchmarks in {self.path} begin with {id_or_prefix!r} ({ids}): "
                "give more of the id"
            )
        latest = [benchmark.id for benchmark in self.benchmarks(NUM_SUGGESTED)]
        known = f"the latest are {', '.join(latest)}" if latest else "it holds none yet"
        raise HistoryError(f"no benchmark in {self.path} begins with {id_or_prefix!r}: {known}")

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, BUSY_WAIT_S, isolation_level=None)) as opened:
                opened.row_factory = sqlite3.Row
                opened.execute("PRAGMA synchronous = FULL")
                yield opened
        except sqlite3.IntegrityError as error:
            raise HistoryError(
                f"{self.path}: {error}. A benchmark is begun once, before its runs; each repeat of "
                "a scenario is added to it once, and each scenario's verdict"
            ) from error
        except sqlite3.Error as error:
            raise HistoryError(
                f"{self.path}: {error}. Expected a history that this process may write; if the "
                "file is damaged, move it away and the next benchmark starts a new one"
            ) from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All of it, or, since the connection is closed, nothing; waits for other writers."""
        with self._connection() as connection:
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")


def canonical(value: Any) -> str:
    """JSON that is the same text for equal values."""
    return json.dumps(to_jsonable_python(value), sort_keys=True, separators=(",", ":"))


def _insert(connection: sqlite3.Connection, table: str, values: dict[str, Any]) -> int:
    names = ", ".join(f'"{name}"' for name in values)
    marks = ", ".join("?" for _ in values)
    done = connection.execute(
        f"INSERT INTO {table} ({names}) VALUES ({marks})", tuple(values.values())
    )
    assert done.lastrowid is not None
    return done.lastrowid


def _benchmark(connection: sqlite3.Connection, row: sqlite3.Row) -> BenchmarkRecord:
    return BenchmarkRecord(
        **{name: row[name] for name in _BENCHMARK},
        **{name: json.loads(row[name]) for name in _BENCHMARK_JSON},
        runs=_runs(connection, row["id"]),
    )


def _runs(
    connection: sqlite3.Connection, benchmark_id: str, scenario: str | None = None
) -> tuple[RunRecord, ...]:
    """Of a benchmark, or of a scenario of it, in the order in which they were added."""
    found = connection.execute(
        "SELECT * FROM runs WHERE benchmark = ?1 AND (?2 IS NULL OR scenario = ?2) ORDER BY id",
        (benchmark_id, scenario),
    )
    return tuple(_run(connection, row) for row in found.fetchall())


def _run(connection: sqlite3.Connection, row: sqlite3.Row) -> RunRecord:
    phases = connection.execute(
        "SELECT phase, seconds FROM phases WHERE run = ? ORDER BY rowid", (row["id"],)
    )
    return RunRecord(
        **{name: row[name] for name in _RUN},
        **{name: json.loads(row[name]) for name in _RUN_JSON},
        phases=dict(phases.fetchall()),
    )
