"""`metrics.jsonl` of a run's folder: a line for each epoch, and at its end one that sums it up."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ups.files import seal, write_atomically
from ups.runs.stored import read_file

METRICS = "metrics.jsonl"
EPOCH = "epoch"  # what only the lines of epochs have
LOSS, VAL = "train/loss", "val/nrmse_rollout"  # in the lines of epochs


class Metrics(NamedTuple):
    """What `metrics.jsonl` holds.

    Attributes:
        epochs: in their order; each has `epoch`, `step` and `time`.
        summary: of the whole run, such as `startup/ttfs_s`, as far as it has got.
    """

    epochs: list[dict[str, Any]]
    summary: dict[str, Any]


def by_problem(kind: str, metric: str, values: Mapping[str, float]) -> dict[str, float]:
    """Name a metric of each problem, as `val/<task>/nrmse_rollout`; none of a single problem."""
    if len(values) == 1:
        return {}
    return {f"{kind}/{problem}/{metric}": value for problem, value in values.items()}


def val_of_problems(row: Mapping[str, Any]) -> dict[str, str]:
    """Problem → the name that its val nRMSE has in the line of an epoch; see `by_problem`."""
    head, tail = VAL.split("/")
    names = [name.split("/") for name in row]
    return {n[1]: "/".join(n) for n in names if len(n) == 3 and n[0] == head and n[2] == tail}


def read_metrics(run_dir: Path) -> Metrics:
    """Read the file; empty where it is missing or, which is logged, cannot be read."""
    rows = [row for row in read_file(run_dir / METRICS, _rows) or () if isinstance(row, dict)]
    epochs = [row for row in rows if EPOCH in row]
    summaries = [row for row in rows if EPOCH not in row]
    return Metrics(epochs, summaries[-1] if summaries else {})


def _rows(text: str) -> list[Any]:
    if not text:
        raise ValueError("it is empty, and at least one line was written")
    return [json.loads(line) for line in text.splitlines()]


def write_rows(run_dir: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace the file: a reader sees the old lines or the new. What is not finite becomes null."""
    lines = "".join(json.dumps(_finite(row), allow_nan=False) + "\n" for row in rows)
    write_atomically(run_dir / METRICS, seal(lines.encode()), durable=False)


def _finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row as JSON can hold it, which has no word for infinity or NaN."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }


def write_epochs(run_dir: Path, epochs: Iterable[Mapping[str, Any]]) -> None:
    """Replace the lines of the epochs; the line that sums the run up stays behind them."""
    summary = read_metrics(run_dir).summary
    write_rows(run_dir, [*epochs, *([summary] if summary else [])])


def begin_summary(run_dir: Path, metrics: Mapping[str, float]) -> None:
    """Sum the run up anew: what an earlier attempt had come to goes."""
    write_rows(run_dir, [*read_metrics(run_dir).epochs, {**metrics, "time": time.time()}])


def add_to_summary(run_dir: Path, metrics: Mapping[str, float]) -> None:
    """Put metrics of the whole run into its last line; those of the same name are replaced."""
    found = read_metrics(run_dir)
    summary = {**found.summary, **metrics, "time": time.time()}
    write_rows(run_dir, [*found.epochs, summary])
