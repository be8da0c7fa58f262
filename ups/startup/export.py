"""The history as a table for other tools: a row per run and phase, as CSV or Parquet."""

from __future__ import annotations

import csv
import io
import sqlite3
from pathlib import Path
from typing import Any

from ups.errors import HistoryError
from ups.files import replacing

# Times named `_at` are Unix times; all are in seconds.
COLUMNS: dict[str, tuple[str, type]] = {
    "benchmark": ("b.id", str),
    "started_at": ("b.started_at", float),
    "commit": ('b."commit"', str),
    "machine_id": ("b.machine_id", str),
    "scenario": ("r.scenario", str),
    "repeat": ("r.repeat", int),
    "flow_run_id": ("r.flow_run_id", str),
    "triggered_at": ("r.triggered_at", float),
    "start_mode": ("r.start_mode", str),
    "cache_reused": ("r.cache_reused", bool),
    "ttfs_s": ("r.ttfs_s", float),
    "phase": ("p.phase", str),
    "phase_s": ("p.seconds", float),
}


def rows(connection: sqlite3.Connection) -> list[tuple[Any, ...]]:
    """In order of time; each has the COLUMNS."""
    found = connection.execute(
        f"SELECT {', '.join(source for source, _ in COLUMNS.values())} "
        "FROM benchmarks b JOIN runs r ON r.benchmark = b.id JOIN phases p ON p.run = r.id "
        "ORDER BY b.started_at, b.id, r.triggered_at, r.id, p.rowid"
    )
    types = [kind for _, kind in COLUMNS.values()]
    return [
        tuple(None if v is None else kind(v) for kind, v in zip(types, row, strict=True))
        for row in found
    ]


def write_csv(path: Path, found: list[tuple[Any, ...]]) -> None:
    with replacing(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(found)
        text.flush()
        text.detach()


def write_parquet(path: Path, found: list[tuple[Any, ...]]) -> None:
    """
    Raises:
        HistoryError: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise HistoryError(
            f"cannot write {path}: pyarrow is not installed ({error}). Install the extra `parquet` "
            "(pip install 'ups-train[parquet]'), or export CSV instead"
        ) from error

    arrow = {str: pa.string(), float: pa.float64(), int: pa.int64(), bool: pa.bool_()}
    schema = pa.schema([(name, arrow[kind]) for name, (_, kind) in COLUMNS.items()])
    columns = zip(*found, strict=True) if found else [()] * len(COLUMNS)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    with replacing(path) as file:
        parquet.write_table(pa.Table.from_arrays(arrays, schema=schema), file)
