"""Files of a run's folder that may be missing or broken, and `run.json`, which is one of them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

import yaml
from pydantic import Field

from ups.config import Model
from ups.files import unseal, write_json

log = logging.getLogger(__name__)

Ended = Literal["completed", "failed", "stopped"]
T = TypeVar("T")


def read_file(path: Path, parse: Callable[[str], T]) -> T | None:
    """Read a file; None where it is missing or, which is logged, damaged or not as expected."""
    try:
        return parse(unseal(path.read_bytes()).decode())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, yaml.YAMLError) as error:
        log.warning("%s is left out: %s", path, error)
        return None


class Stored(Model):
    """Base of the records: each names its `FILE`, and gives the fields that came later a default.

    So a record of an earlier version is read as well as one of a later version, whose further
    fields are ignored.
    """

    FILE: ClassVar[str]

    def save(self, run_dir: Path, *, in_place: bool = False) -> None:
        """Write the record: a reader sees the old one or the new.

        Args:
            in_place: into the file that is there, for which a full disk has room.
        """
        write_json(run_dir / self.FILE, self.model_dump(mode="json"), in_place=in_place)

    @classmethod
    def load(cls, run_dir: Path) -> Self | None:
        """Read the record; None where its file is missing or, which is logged, not as expected."""
        return read_file(
            run_dir / cls.FILE, lambda text: cls.model_validate_json(text, extra="ignore")
        )


class RunInfo(Stored):
    """What `run.json` holds: what a run is, and how it ended.

    Attributes:
        started_at, ended_at: Unix times in seconds; of the first attempt, and of the last.
        changed: of the config that the run was started with, dotted key → value.
        attempt: 1, and one more for each retry in the same folder.
        command: as typed in a shell; `deployment`: the id of the one that Prefect ran.
        host, pid, process_started_at: of the process of the last attempt.
        commit: of the code, `-dirty` at its end where files were changed.
        state: how the last attempt ended; None while it goes on, or where it was killed.
    """

    FILE: ClassVar[str] = "run.json"

    id: str
    name: str
    changed: dict[str, Any] = Field(default_factory=dict)
    started_at: float
    attempt: int = 1
    command: str | None = None
    deployment: str | None = None
    flow_run_id: str | None = None
    host: str
    pid: int
    process_started_at: float
    commit: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    machine: dict[str, Any] = Field(default_factory=dict)
    state: Ended | None = None
    error: str | None = None
    ended_at: float | None = None
