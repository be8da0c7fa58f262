"""What a shell completes: names of configs, their keys, cache keys, runs, scenarios, benchmarks.

Where nothing is offered, bash goes on with names of files.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from ups.cli import places

RUNS_DIR = Path("runs")


def configs(incomplete: str) -> list[str]:
    """The configs of the project, by name."""
    from ups.config import CONFIG_DIR

    return _starting(incomplete, (path.stem for path in CONFIG_DIR.glob("*.yaml")))


def config_keys(incomplete: str) -> list[str]:
    """`latent.dim=` and the like, from the config's models."""
    from ups.config import RunConfig

    return _starting(incomplete, (f"{key}=" for key in _leaves(RunConfig)))


def cache_keys(context: typer.Context, incomplete: str) -> list[str]:
    """The entries of the cache directory that the options before name."""
    from ups.config import Training, load_config
    from ups.errors import ConfigError

    directory, config = context.params.get("directory"), context.params.get("config")
    try:
        training = load_config(config).training if config else Training()
    except ConfigError:
        return []
    cache_dir = Path(directory) if directory else places.of_project(training.latent_cache_dir)
    return _starting(incomplete, _folders(cache_dir))


def runs(context: typer.Context, incomplete: str) -> list[str]:
    """The ids of the runs in the directory that the options before name, in their short form.

    Once something is typed, whole ids as well, also with dashes.
    """
    from ups.runs.folder import parse_folder_name
    from ups.runs.index import short_ids, spellings

    given = context.params.get("folder")
    runs_dir = Path(given) if given else places.of_project(RUNS_DIR)
    ids = [name.id for name in map(parse_folder_name, _folders(runs_dir)) if name]
    short = short_ids(runs_dir, ids).values()
    whole = [spelling for run_id in ids for spelling in spellings(run_id)] if incomplete else []
    return _starting(incomplete, {*short, *whole})


def scenarios(incomplete: str) -> list[str]:
    """Of a startup benchmark, and their sets; also after a comma."""
    from ups.startup.measure.scenarios import SCENARIOS, SETS

    before, comma, last = incomplete.rpartition(",")
    names = _starting(last, [*SETS, *(scenario.name for scenario in SCENARIOS)])
    return [f"{before}{comma}{name}" for name in names]


def benchmarks(context: typer.Context, incomplete: str) -> list[str]:
    """The ids of the benchmarks in the folder that the options before name."""
    from ups.startup.measure.records import FOLDER

    folder = Path(context.params.get("folder") or places.of_project(FOLDER))
    return _starting(incomplete, (path.stem for path in (folder / "history").glob("*.json")))


def _folders(directory: Path) -> list[str]:
    if not directory.is_dir():
        return []
    return [path.name for path in directory.iterdir() if path.is_dir() and path.name[0] != "."]


def _starting(incomplete: str, names: Any) -> list[str]:
    return sorted(name for name in names if name.startswith(incomplete))


def _leaves(model: Any, parents: str = "") -> Iterator[str]:
    from ups.config import Model

    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Model):
            yield from _leaves(kind, f"{parents}{name}.")
        else:
            yield f"{parents}{name}"
