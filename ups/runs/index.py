"""Read the folders of runs: list them, find one, read all of it."""

from __future__ import annotations

import calendar
import json
import logging
import math
import os
import platform
import re
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import yaml
from pydantic import Field, ValidationError

from ups.config import Model, run_title
from ups.errors import ConfigError
from ups.machine.processes import is_running
from ups.runs.breakdown import STOPPED, Breakdown
from ups.runs.folder import CONFIG, STAMP, FolderName, find_run_dir, parse_folder_name
from ups.runs.metrics import read_metrics
from ups.runs.stored import RunInfo, read_file

log = logging.getLogger(__name__)

State = Literal["completed", "failed", "stopped", "running", "unknown"]

NUM_HINTED = 5  # ids in the message about one that is not there
NUM_DIGITS = 32  # of a flow run's id
NUM_SHORT = 8  # of them are shown, or a few more


class RunSummary(Model):
    """A run in a line.

    Attributes:
        changed: of the config that it was started with, dotted key → value.
        started_at: Unix time in seconds.
        state: `unknown` where the process was killed, or runs on another machine.
        ttfs_s: None without a first step; of `ups train`, since its process started.
        num_epochs: epochs that are done.
    """

    id: str
    folder: Path
    name: str
    changed: dict[str, Any] = Field(default_factory=dict)
    started_at: float
    state: State
    ttfs_s: float | None = None
    cache_reused: bool | None = None
    num_epochs: int = 0
    nrmse_rollout: float | None = None
    commit: str | None

    @property
    def title(self) -> str:
        """What a person calls it by."""
        return run_title(self.name, self.changed)


@dataclass(frozen=True, slots=True)
class RunFiles:
    """All that a run's folder holds; empty, or None, where the run did not get that far."""

    folder: Path
    info: RunInfo | None
    breakdown: Breakdown | None
    scores: dict[str, Any]
    epochs: list[dict[str, Any]]
    metrics: dict[str, Any]  # of the whole run, by their names

    @property
    def config(self) -> dict[str, Any]:
        """Read when it is asked for: of all files it takes by far the longest."""
        return read_file(self.folder / CONFIG, lambda text: _tree(yaml.safe_load(text))) or {}

    def summary(self) -> RunSummary:
        """The run in a line; without figures, which is logged, where they make no sense."""
        named = _name_of(self.folder)
        stamp = calendar.timegm(time.strptime(named.stamp, STAMP))
        run = RunSummary(
            id=named.id,
            folder=self.folder,
            name=named.name,
            changed=self.info.changed if self.info else {},
            started_at=self.info.started_at if self.info else stamp,
            state=self._state(),
            commit=self.info.commit if self.info else None,
        )
        try:
            figures = self._figures()
            if not math.isfinite(figures["nrmse_rollout"] or 0):  # earlier versions let it pass
                figures |= {"nrmse_rollout": None, "state": "failed"}
            return RunSummary(**{**dict(run), **figures})
        except (AttributeError, TypeError, ValidationError) as error:
            log.warning("the figures in %s are left out: %s", self.folder, error)
            return run

    def _figures(self) -> dict[str, Any]:
        """By the breakdown; by the metrics where there is none."""
        found, metrics = self.breakdown, self.metrics
        nrmse = found.nrmse_rollout if found else None
        return {
            "ttfs_s": found.ttfs_s if found else metrics.get("startup/ttfs_s"),
            "cache_reused": found.cache_reused if found else metrics.get("startup/cache_reused"),
            "num_epochs": self.epochs[-1]["epoch"] if self.epochs else 0,
            "nrmse_rollout": self.scores.get("rollout", {}).get("nRMSE", nrmse),
        }

    def nrmse_of_problems(self) -> dict[str, float]:
        """Name → nRMSE of the rollouts; empty where one problem is the whole."""
        problems = self.scores.get("tasks", {})
        return {name: scores["rollout"]["nRMSE"] for name, scores in problems.items()}

    def _state(self) -> State:
        """By `run.json`; by the breakdown where an earlier version left none."""
        if info := self.info:
            is_here = info.host == platform.node()
            goes_on = is_here and is_running(info.pid, info.process_started_at)
            return info.state or ("running" if goes_on else "unknown")
        if self.breakdown is None:
            return "unknown"
        if self.breakdown.failed is None:
            return "completed"
        return "stopped" if self.breakdown.failed == STOPPED else "failed"


def find_runs(runs_dir: Path, limit: int | None = None) -> list[RunSummary]:
    """Sum up the runs of a directory, the newest first; none where there is no such directory."""
    return [read_run(runs_dir / name).summary() for name in _names(runs_dir)[:limit]]


def find_run(runs_dir: Path, text: str) -> Path:
    """Find the folder of the run whose id is, begins or ends with `text`, or whose name begins so.

    A flow run's id may have its dashes.

    Raises:
        ConfigError: there is none, or more than one.
    """
    folders = _folders(runs_dir)
    exact = [folder for folder in folders if text in (folder.name, *spellings(_name_of(folder).id))]
    found = exact or [folder for folder in folders if _fits(folder, text)]
    if len(found) == 1:
        return found[0]
    if not folders:
        raise ConfigError(f"run {text!r}: {runs_dir} holds no run")
    hinted = [_name_of(folder).id for folder in (found or folders)[:NUM_HINTED]]
    latest = ", ".join(short_ids(runs_dir, hinted).values())
    if found:
        raise ConfigError(
            f"run {text!r}: {len(found)} runs begin or end so, expected one; the latest: {latest}"
        )
    raise ConfigError(f"run {text!r}: none in {runs_dir} begins or ends so; the latest: {latest}")


def short_ids(runs_dir: Path, ids: Iterable[str]) -> dict[str, str]:
    """For each id what `find_run` finds it by: of a flow run the end, whose digits are random."""
    names = [(name, name.rpartition("-")[2]) for name in _names(runs_dir)]
    short = {run_id: run_id for run_id in ids}
    whole = {run_id for run_id in short if len(spellings(run_id)) > 1}
    for num in range(NUM_SHORT, NUM_DIGITS, 4):
        if not whole:
            break
        fits: Counter[str] = Counter()  # how many folders a text of this length fits
        for name, run_id in names:
            fits.update({name[:num], run_id[:num], run_id[-num:]})
        found = {run_id: run_id[-num:] for run_id in whole if fits[run_id[-num:]] == 1}
        short |= found
        whole -= found.keys()
    return short


def breakdown_of(runs_dir: Path, flow_run_id: UUID) -> Breakdown | None:
    """The breakdown that a flow run left; None where it left none that can be read."""
    folder = find_run_dir(runs_dir, flow_run_id)
    return None if folder is None else Breakdown.load(folder)


def read_run(folder: Path) -> RunFiles:
    """Read all there is; a file that is broken or half written is left out, and logged."""
    metrics = read_metrics(folder)
    return RunFiles(
        folder=folder,
        info=RunInfo.load(folder),
        breakdown=Breakdown.load(folder),
        scores=read_file(folder / "scores.json", lambda text: _tree(json.loads(text))) or {},
        epochs=metrics.epochs,
        metrics={name: value for name, value in metrics.summary.items() if name != "time"},
    )


def _folders(runs_dir: Path) -> list[Path]:
    """The folders of runs, the newest first."""
    return [runs_dir / name for name in _names(runs_dir)]


def _names(runs_dir: Path) -> list[str]:
    """The names of the folders of runs, the newest first."""
    if not runs_dir.is_dir():
        return []
    with os.scandir(runs_dir) as found:  # thousands of them: no `stat` and no `Path` of each
        names = [entry.name for entry in found if parse_folder_name(entry.name) and entry.is_dir()]
    return sorted(names, reverse=True)


def _name_of(folder: Path) -> FolderName:
    name = parse_folder_name(folder.name)
    assert name is not None, "only folders of runs are read"
    return name


def spellings(run_id: str) -> list[str]:
    """An id, and where it is a flow run's also with dashes."""
    is_flow_run = re.fullmatch(f"[0-9a-f]{{{NUM_DIGITS}}}", run_id)
    return [run_id, str(UUID(run_id))] if is_flow_run else [run_id]


def _fits(folder: Path, text: str) -> bool:
    if not text:
        return False
    if folder.name.startswith(text):
        return True
    run_id = _name_of(folder).id
    if any(id_.startswith(text) or id_.endswith(text) for id_ in spellings(run_id)):
        return True
    # An earlier version's folder has the first digits of the id only; the record has all of it.
    if not text.startswith(f"{run_id}-"):
        return False
    info = RunInfo.load(folder)
    return info is None or (info.flow_run_id or "").startswith(text)


def _tree(found: Any) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise ValueError(f"found {type(found).__name__}, expected names with values")
    return found
