"""The tables of the history file, and how a file of an older version gets to the present one."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from ups.errors import HistoryError

# Script n takes a file from version n to n + 1. What has been released is never edited: add one.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE benchmarks (
        id TEXT PRIMARY KEY,
        started_at REAL NOT NULL,          -- Unix time in seconds
        flow_run_id TEXT,
        machine_id TEXT NOT NULL,
        machine TEXT NOT NULL,             -- JSON
        versions TEXT NOT NULL,            -- JSON
        "commit" TEXT NOT NULL,
        settings TEXT NOT NULL,            -- canonical JSON, so that equal settings are equal text
        is_complete INTEGER NOT NULL DEFAULT 0
    );
    CREATE INDEX benchmarks_by_machine ON benchmarks (machine_id, started_at);
    CREATE TABLE runs (
        id INTEGER PRIMARY KEY,
        benchmark TEXT NOT NULL REFERENCES benchmarks (id) ON DELETE CASCADE,
        scenario TEXT NOT NULL,
        repeat INTEGER NOT NULL,
        flow_run_id TEXT NOT NULL,
        triggered_at REAL NOT NULL,        -- Unix time in seconds
        ttfs_s REAL NOT NULL,
        start_mode TEXT NOT NULL,
        cache_reused INTEGER,
        bounds TEXT NOT NULL,              -- JSON
        bounds_s TEXT NOT NULL,            -- JSON
        spans TEXT NOT NULL,               -- JSON
        UNIQUE (benchmark, scenario, repeat)
    );
    CREATE TABLE phases (
        run INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
        phase TEXT NOT NULL,
        seconds REAL NOT NULL,
        PRIMARY KEY (run, phase)
    );
    CREATE TABLE verdicts (
        benchmark TEXT NOT NULL REFERENCES benchmarks (id) ON DELETE CASCADE,
        scenario TEXT NOT NULL,
        kind TEXT NOT NULL,
        phase TEXT,
        before_s REAL,
        after_s REAL,
        verdict TEXT NOT NULL,             -- JSON, all of it
        PRIMARY KEY (benchmark, scenario)
    );
    """,
    """
    ALTER TABLE runs ADD COLUMN busy_cores REAL;  -- NULL where nobody looked
    """,
)


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring a file to the present version, each step in a transaction of its own.

    Foreign keys must be off, or a script that rebuilds a table would delete what refers to it, and
    nobody else may migrate the file at the same time.

    Raises:
        HistoryError: the file is of a newer version than this code knows.
        sqlite3.Error: a step failed; closing the connection undoes it.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise HistoryError(
            f"{path} has schema version {version}, this code knows versions up to "
            f"{len(MIGRATIONS)}: update the code, or name another file for this version's history"
        )
    for step in range(version, len(MIGRATIONS)):
        connection.executescript(
            f"BEGIN IMMEDIATE;\n{MIGRATIONS[step]};\nPRAGMA user_version = {step + 1};\nCOMMIT;"
        )
