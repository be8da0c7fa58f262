"""Check a run before it downloads anything."""

from __future__ import annotations

from pathlib import Path

from tasks.timeline import phase_task
from ups.config import Parsed
from ups.errors import UpsError
from ups.validate.head import require_valid


@phase_task("validate", task_run_name="0 validate-config")
def validate_config(parsed: Parsed, resume: Path | None, refused: UpsError | None = None) -> None:
    """Fail with all faults at once, those of the config among them.

    Args:
        resume: the checkpoint to go on from.
        refused: why the object store cannot be addressed, if it cannot.
    """
    require_valid(parsed, resume, refused=refused)
