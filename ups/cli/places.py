"""Where commands look: the project's folders, from any folder of a clone.

A default folder, or a relative one in a config, is the project's. One that the command line names
is meant from the working directory, as everywhere. Outside of a clone both are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ups import PROJECT_DIR

if TYPE_CHECKING:
    from ups.config import RunConfig

MARKS = ("prefect.yaml", "ups/__init__.py")  # what a clone has


def clone_here() -> Path | None:
    """The clone that the working directory is in; None outside of any."""
    here = Path.cwd()
    found = (folder for folder in (here, *here.parents) if _is_clone(folder))
    return next(found, None)


def _is_clone(folder: Path) -> bool:
    return all((folder / mark).is_file() for mark in MARKS)


def of_project(path: Path) -> Path:
    """An absolute path: below the clone that the working directory is in, or below this."""
    return (clone_here() or Path.cwd()) / path


def default_of_project(context: typer.Context, parameter: typer.CallbackParam, value: Path) -> Path:
    """A callback of an option with a folder: what was not given is the project's."""
    source = context.get_parameter_source(parameter.name or "")
    return of_project(value) if source is None or source.name == "DEFAULT" else value


def load_config_here(name_or_path: str | Path, settings: Mapping[str, Any]) -> RunConfig:
    """`load_config`; inside a clone, below its root, relative folders of the config are the root's.

    Args:
        settings: dotted overrides of the command line; a folder among them stays as it is.
    Raises:
        ConfigError: as `load_config`.
    """
    from ups.config import load_config

    config, root = load_config(name_or_path, settings), clone_here()
    if root is None or root == Path.cwd():
        return config
    folders = {
        "runs_dir": config.runs_dir,
        "data.root": config.data.root,
        "training.latent_cache_dir": config.training.latent_cache_dir,
    }
    moved = {
        key: str(root / path)
        for key, path in folders.items()
        if not any(key == given or key.startswith(f"{given}.") for given in settings)
    }
    return load_config(name_or_path, {**moved, **settings})


def elsewhere(default: Path, looked_in: Path) -> str:
    """What to add where nothing was found: that the project of this `ups` has such a folder."""
    other = PROJECT_DIR / default
    if other.is_dir() and other != looked_in.absolute():
        return f"; the project of this `ups` has {other}: `--dir {other}`"
    return ""


def say_other_clone() -> None:
    """Say, on standard error, that the working directory is in a clone that this is not of."""
    if (here := clone_here()) not in (None, PROJECT_DIR):
        typer.echo(
            f"note: this `ups` is that of {PROJECT_DIR}: its configs, its stack; in {here} "
            "`source .venv/bin/activate` takes that one",
            err=True,
        )
