"""What a tracker does, and what all of them show."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ups.runs.index import RunFiles

NOTE = "note: "  # how a line of a tracker's begins that is for the user


class Tracker(Protocol):
    """Shows a run elsewhere.

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
    """The figures of an epoch without what only counts or dates it, or was not finite."""
    return {name: value for name, value in row.items() if "/" in name and value is not None}


def pictures(files: RunFiles) -> dict[str, Path]:
    """Name → PNG file, of all that the run has drawn."""
    return {path.stem: path for path in sorted(files.folder.glob("*.png"))}


def described(files: RunFiles) -> dict[str, Any]:
    """The config of a run, and under `run` its commit, versions, machine and who called it."""
    names = {"commit", "versions", "machine", "command", "deployment", "flow_run_id", "host"}
    facts = files.info.model_dump(mode="json", include=names) if files.info else {}
    return {**files.config, "run": facts}
