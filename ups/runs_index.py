"""What the folders of runs tell: a list of them, one in full, and what differs between two."""

from __future__ import annotations

import json
import logging
import platform
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import yaml
from pydantic import ValidationError

from ups.config import Model
from ups.errors import ConfigError
from ups.runs import CONFIG, STAMP, FolderName, RunInfo, parse_folder_name, read_info
from ups.telemetry.metrics_file import read_metrics
from ups.telemetry.phases import STARTUP_PHASES, STOPPED
from ups.telemetry.process import is_running

log = logging.getLogger(__name__)

State = Literal["completed", "failed", "stopped", "running", "unknown"]

TTFS = "time to first step"
NUM_HINTED = 5  # ids in the message about one that is not there
NUM_DIGITS = 32  # of a flow run's id
NUM_SHORT = 8  # of them are shown, or a few more


class RunSummary(Model):
    """A run in a line.

    Attributes:
        started_at: Unix time in seconds.
        state: `unknown` where the process was killed, or runs on another machine.
        ttfs_s: None without a first step; of `ups train`, since its process started.
        num_epochs: epochs that are done.
    """

    id: str
    folder: Path
    name: str
    started_at: float
    state: State
    ttfs_s: float | None = None
    cache_reused: bool | None = None
    num_epochs: int = 0
    nrmse_rollout: float | None = None
    commit: str | None


class Change(Model):
    """A figure of two runs; None where a run has none."""

    before: float | None
    after: float | None

    @property
    def difference(self) -> float | None:
        if self.before is None or self.after is None:
            return None
        return self.after - self.before


class RunComparison(Model):
    """
    Attributes:
        config: dotted key → (before, after), of those that differ; None where it is not set.
        startup: phase → seconds, the whole time to the first step before them.
        nrmse: of the rollouts of the test split; of several tasks the mean.
        tasks: name → the same of one of several tasks, of those that both runs were scored on.
    """

    before: RunSummary
    after: RunSummary
    config: dict[str, tuple[Any, Any]]
    startup: dict[str, Change]
    nrmse: Change
    tasks: dict[str, Change]


@dataclass(frozen=True, slots=True)
class RunFiles:
    """What stands in a run's folder; empty, or None, where the run did not get that far."""

    folder: Path
    config: dict[str, Any]
    info: RunInfo | None
    breakdown: dict[str, Any]
    scores: dict[str, Any]
    epochs: list[dict[str, Any]]
    metrics: dict[str, Any]  # of the whole run, by their names

    def summary(self) -> RunSummary:
        try:
            return RunSummary(**self._identity(), **self._figures())
        except (AttributeError, TypeError, ValidationError) as error:
            log.warning("the figures in %s are left out: %s", self.folder, error)
            return RunSummary(**self._identity())

    def _identity(self) -> dict[str, Any]:
        named = _name_of(self.folder)
        stamp = time.mktime(time.strptime(named.stamp, STAMP))
        return {
            "id": named.id,
            "folder": self.folder,
            "name": named.name,
            "started_at": self.info.started_at if self.info else stamp,
            "state": self._state(),
            "commit": self.info.commit if self.info else None,
        }

    def _figures(self) -> dict[str, Any]:
        rollout = self.scores.get("rollout", {}).get("nRMSE")
        metric = self.metrics.get("startup/cache_reused")
        reused = None if metric is None else bool(metric)
        return {
            "ttfs_s": self.breakdown.get("ttfs_s", self.metrics.get("startup/ttfs_s")),
            "cache_reused": self.breakdown.get("cache_reused", reused),
            "num_epochs": self.epochs[-1]["epoch"] if self.epochs else 0,
            "nrmse_rollout": self.breakdown.get("nrmse_rollout") if rollout is None else rollout,
        }

    def nrmse_of_tasks(self) -> dict[str, tuple[float, float]]:
        """Name → nRMSE and persistence's, of the rollouts; empty where one task is the whole."""
        return {
            name: (scores["rollout"]["nRMSE"], scores["persistence_rollout"]["nRMSE"])
            for name, scores in self.scores.get("tasks", {}).items()
        }

    def _state(self) -> State:
        """By `run.json`; by the breakdown where an earlier version left none."""
        if info := self.info:
            here = info.host == platform.node()
            goes_on = here and is_running(info.pid, info.process_started_at)
            return info.state or ("running" if goes_on else "unknown")
        if not self.breakdown:
            return "unknown"
        failed = self.breakdown.get("failed")
        if failed is None:
            return "completed"
        return "stopped" if failed == STOPPED else "failed"


def find_runs(runs_dir: Path, limit: int | None = None) -> list[RunSummary]:
    """The runs of a directory, the newest first; none where there is no such directory."""
    return [read_run(folder).summary() for folder in _folders(runs_dir)[:limit]]


def find_run(runs_dir: Path, text: str) -> Path:
    """The folder of the run whose id is, begins or ends with `text`, or whose name begins so.

    A flow run's id may have its dashes.

    Raises:
        ConfigError: there is none, or more than one.
    """
    folders = _folders(runs_dir)
    exact = [folder for folder in folders if text in (folder.name, *_spellings(folder))]
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
    names = [(folder.name, _name_of(folder).id) for folder in _folders(runs_dir)]
    short = {run_id: run_id for run_id in ids}
    whole = {run_id for run_id in short if _dashed(run_id)}
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


def read_run(folder: Path) -> RunFiles:
    """What there is; a file that is broken or half written counts as missing, and is logged."""
    metrics = read_metrics(folder)
    return RunFiles(
        folder=folder,
        config=_read_tree(folder / CONFIG, yaml.safe_load),
        info=read_info(folder),
        breakdown=_read_tree(folder / "breakdown.json", json.loads),
        scores=_read_tree(folder / "scores.json", json.loads),
        epochs=metrics.epochs,
        metrics={name: value for name, value in metrics.summary.items() if name != "time"},
    )


def compare(before: Path, after: Path) -> RunComparison:
    """What differs between two runs, by their folders."""
    a, b = read_run(before), read_run(after)
    first, second = a.summary(), b.summary()
    flat_a, flat_b = dict(_flatten(a.config)), dict(_flatten(b.config))
    keys = [*flat_a, *(key for key in flat_b if key not in flat_a)]
    seconds_a, seconds_b = _startup_s(a, first.ttfs_s), _startup_s(b, second.ttfs_s)
    phases = [p for p in (TTFS, *STARTUP_PHASES, "unaccounted") if p in seconds_a or p in seconds_b]
    return RunComparison(
        before=first,
        after=second,
        config={
            key: (flat_a.get(key), flat_b.get(key))
            for key in keys
            if flat_a.get(key) != flat_b.get(key)
        },
        startup={
            phase: Change(before=seconds_a.get(phase), after=seconds_b.get(phase))
            for phase in phases
        },
        nrmse=Change(before=first.nrmse_rollout, after=second.nrmse_rollout),
        tasks={
            name: Change(before=before_it, after=b.nrmse_of_tasks()[name][0])
            for name, (before_it, _) in a.nrmse_of_tasks().items()
            if name in b.nrmse_of_tasks()
        },
    )


def _folders(runs_dir: Path) -> list[Path]:
    """Of runs, the newest first."""
    if not runs_dir.is_dir():
        return []
    found = [path for path in runs_dir.iterdir() if parse_folder_name(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: path.name, reverse=True)


def _name_of(folder: Path) -> FolderName:
    name = parse_folder_name(folder.name)
    assert name is not None, "only folders of runs are read"
    return name


def spellings(run_id: str) -> list[str]:
    """An id, and where it is a flow run's also with dashes."""
    dashed = _dashed(run_id)
    return [run_id] if dashed is None else [run_id, dashed]


def _dashed(run_id: str) -> str | None:
    return str(UUID(run_id)) if re.fullmatch(f"[0-9a-f]{{{NUM_DIGITS}}}", run_id) else None


def _spellings(folder: Path) -> list[str]:
    return spellings(_name_of(folder).id)


def _fits(folder: Path, text: str) -> bool:
    if not text:
        return False
    if folder.name.startswith(text):
        return True
    if any(id_.startswith(text) or id_.endswith(text) for id_ in _spellings(folder)):
        return True
    # An earlier version's folder has the first digits of the id only; the record has all of it.
    if not text.startswith(f"{_name_of(folder).id}-"):
        return False
    info = read_info(folder)
    return info is None or (info.flow_run_id or "").startswith(text)


def _read_tree(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    try:
        found = parse(path.read_text())
        if not isinstance(found, dict):
            raise ValueError(f"found {type(found).__name__}, expected names with values")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        log.warning("%s is left out: %s", path, error)
        return {}
    return found


def _flatten(tree: dict[str, Any], parents: str = "") -> Iterator[tuple[str, Any]]:
    """`{"latent": {"dim": 32}}` → `("latent.dim", 32)`; a list is a value, but for one of tasks."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{parents}{key}.")
        elif f"{parents}{key}" == "data.task" and isinstance(value, list):
            yield from _flatten({task["name"]: task for task in value}, f"{parents}{key}.")
        else:
            yield f"{parents}{key}", value


def _startup_s(files: RunFiles, ttfs_s: float | None) -> dict[str, float]:
    seconds = {row["phase"]: row["seconds"] for row in files.breakdown.get("phases", [])}
    return seconds if ttfs_s is None else {TTFS: ttfs_s, **seconds}
