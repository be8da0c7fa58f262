"""Prefect's settings, worked out once in the worker and not once more for each run."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import prefect.context
from prefect.settings import Settings, get_current_settings

FILES = (".env", "prefect.toml", "pyproject.toml")  # that Prefect reads from the working directory


def environment_of_settings() -> dict[str, str]:
    """The environment variables that a worker's runs get: its settings."""
    return get_current_settings().to_environment_variables(exclude_unset=True)


def keep_environment_of_settings() -> None:
    """Have this process write its settings as variables once.

    Prefect's worker does it twice for each run, 35 ms each. The settings of a process stay as they
    are; others, such as a test's temporary ones, are written as before.
    """
    current, write = get_current_settings(), Settings.to_environment_variables
    written = functools.cache(functools.partial(write, current))

    def to_environment_variables(self: Settings, **options: Any) -> dict[str, str]:
        return dict(written(**options)) if self is current else write(self, **options)

    Settings.to_environment_variables = to_environment_variables  # type: ignore[method-assign]


def sources_of_settings() -> tuple[dict[str, str], list[tuple[str, int, int]]]:
    """All that this process's settings come from: its variables, and the state of the files."""
    variables = {
        name: value
        for name, value in os.environ.items()
        if name.startswith("PREFECT_") and not name.startswith("PREFECT__")  # `__`: of one run
    }
    files = []
    for path in (*map(Path, FILES), get_current_settings().profiles_path):
        if path is not None and path.exists():
            stat = path.stat()
            files.append((str(path.absolute()), stat.st_mtime_ns, stat.st_size))
    return variables, files


def refresh_settings(known: object) -> None:
    """Read the settings again, unless their sources are those `known` from before a fork: 46 ms."""
    if sources_of_settings() != known:
        prefect.context.refresh_global_settings_context()
