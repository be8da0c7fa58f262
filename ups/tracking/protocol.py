"""What a tracker does, and what all of them show."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ups.runs_index import RunFiles
from ups.telemetry.gpu import words_of_record

COLUMNS = ("phase", "seconds", "share", "what bounds it")


class Tracker(Protocol):
    """
    Attributes:
        epochs_known: how many epochs of this run it holds already, from an earlier attempt.
    """

    epochs_known: int

    def log(self, row: Mapping[str, Any]) -> None:
        """Take the metrics of an epoch: a line of `metrics.jsonl`."""

    def finish(self, files: RunFiles, ended: str) -> None:
        """Take the rest, and send all of it.

        Args:
            files: of the run, which is over.
            ended: completed, failed, stopped or killed.
        """


def curves(row: Mapping[str, Any]) -> dict[str, float]:
    """The figures of an epoch without what only counts or dates it."""
    return {name: value for name, value in row.items() if "/" in name}


def breakdown_rows(files: RunFiles) -> list[tuple[str, float | None, float | None, str]]:
    """Rows of the table of the startup, under `COLUMNS`; none where there is no breakdown."""
    rows: list[tuple[str, float | None, float | None, str]] = [
        (row["phase"], row["seconds"], row["share"], row["bound"])
        for row in files.breakdown.get("phases", [])
    ]
    if words := words_of_record(files.breakdown):
        rows.append(("GPU", None, None, words))
    return rows


def pictures(files: RunFiles) -> dict[str, Path]:
    """Name → PNG file, of all that the run has drawn."""
    return {path.stem: path for path in sorted(files.folder.glob("*.png"))}


def story(files: RunFiles) -> dict[str, Any]:
    """What a run is beside its config: commit, versions, machine, who called it."""
    if files.info is None:
        return {}
    names = {"commit", "versions", "machine", "command", "deployment", "flow_run_id", "host"}
    return files.info.model_dump(mode="json", include=names)
