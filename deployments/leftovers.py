"""What the project has left on disk, and its removal: never what a person put there.

    made again     environments, the stack's state, generated objects, fetched files, the cache
    results        runs and the history of benchmarks: removed only where that is asked for

A file in the data folder is ours where a stamp says that a fetch of ours brought it, and that it
has not changed since. An object in the stack's store is ours where a config of the project
generates it.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from deployments.layout import TOML_HEADER, Stack, StackError
from deployments.stack import PARTS
from ups.config import PROJECT_CONFIGS, load_config
from ups.data.seed import is_seeded_by_us
from ups.data.stamps import read_stamp
from ups.latents import prune as cache
from ups.latents.entries import CONFIG_HASH, entries
from ups.runs import prune as runs
from ups.runs.folder import CONFIG, LOCK
from ups.runs.index import find_runs
from ups.startup.measure.records import FOLDER as BENCHMARKS
from ups.startup.measure.scenarios import SCENARIOS

ENVIRONMENTS = (".venv", ".venv-speed")
WORK = (".speed", ".ui", ".vast", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis")
CODE = ("ups", "tasks", "flows", "deployments", "speed", "tests")
RUNS, DATA, CACHE = Path("runs"), Path("data/pdebench"), Path("data/latent_cache")
BESIDE = re.compile(r"\..+\.(stamp|lock|journal|part)")  # what a download leaves beside a file
STATE = (
    "env",
    "deployed.json",
    "lock",
    "logs",
    "prefect",
    "processes",
    "server.env",
    "settings.json",
    "warm.sock",
)
HISTORY = ("history", "reports", "history.sqlite")  # of benchmarks; their other folders are work


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something that the project made, and how it is removed: False where somebody uses it."""

    path: Path
    num_bytes: int
    remove: Callable[[], bool]


@dataclass(slots=True)
class Leftovers:
    """All that there is.

    Attributes:
        again: what the next run makes again.
        results: runs and benchmarks.
        others: what is no work of the project and stays, and why.
    """

    again: list[Leftover] = field(default_factory=list)
    results: list[Leftover] = field(default_factory=list)
    others: list[tuple[Path, int, str]] = field(default_factory=list)


def on_disk(path: Path) -> int:
    """Bytes that a file, or all files in a folder, take; links are not followed."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_blocks * 512 if path.is_symlink() or path.exists() else 0
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_blocks * 512
            except FileNotFoundError:  # removed meanwhile
                continue
    return total


def sizes(project: Path, stack: Stack) -> dict[Path, int]:
    """What the large folders take, without those that are not there."""
    folders = [*_environments(project), stack.folder, project / "data"]
    found = {folder: on_disk(folder) for folder in (*folders, project / RUNS)}
    return {folder: num_bytes for folder, num_bytes in found.items() if num_bytes}


def find(project: Path, stack: Stack) -> Leftovers:
    """Look for everything, and remove nothing.

    Args:
        project: the clone.
    Raises:
        StackError: the stack runs.
    """
    if running := [part for part in PARTS if stack.processes.running(part)]:
        raise StackError(f"the stack runs ({', '.join(running)}): `ups down` first")
    found = Leftovers()
    _find_state(stack, found)
    _find_data(project, found)
    _find_results(project, found)
    caches = (path for name in CODE for path in (project / name).rglob("__pycache__"))
    for path in (*(project / name for name in WORK), *sorted(caches)):
        _add(path, found.again)
    for path in _environments(project):  # last: this may run in it
        if path.is_symlink() or (path / "pyvenv.cfg").is_file():
            _add(path, found.again)
        elif path.exists():
            found.others.append((path, on_disk(path), "no environment"))
    return found


def _environments(project: Path) -> list[Path]:
    """Where the Makefile installs; also those of `make test PYTHON=…`."""
    return [*(project / name for name in ENVIRONMENTS), *sorted(project.glob(".venv-3.*"))]


def remove_empty(project: Path, stack: Stack, gone: Iterable[Leftover]) -> None:
    """Remove the folders that nothing is left in, now that what stood in them is gone."""
    ends = {project, stack.folder, *stack.folder.parents}
    folders = [project / name for name in (DATA, CACHE, BENCHMARKS, DATA.parent, RUNS)]
    above = [parent for one in gone for parent in _up_to(one.path.parent, ends)]
    for folder in (*above, *folders, stack.folder):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _up_to(folder: Path, ends: Container[Path]) -> Iterator[Path]:
    """The folder and those above it, the innermost first, without the ends."""
    for one in (folder, *folder.parents):
        if one in ends:
            return
        yield one


def _add(path: Path, to: list[Leftover], remove: Callable[[], bool] | None = None) -> None:
    if path.is_symlink() or path.exists():
        to.append(Leftover(path, on_disk(path), remove or partial(_delete, path)))


def _delete(path: Path) -> bool:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    return True


def _find_state(stack: Stack, found: Leftovers) -> None:
    """Of the stack: all but the objects that a person put into its store."""
    generated = set(_generated())
    objects = stack.folder / "s3"
    for name in STATE:  # by name: UPS_STACK_DIR may be a folder with more in it
        _add(stack.folder / name, found.again)
    files = [path for path in sorted(objects.rglob("*")) if not path.is_dir()]
    ours = [path for path in files if path.relative_to(objects).as_posix() in generated]
    if not files:
        _add(objects, found.again)
    foreign = [path for path in files if path not in ours and path.name != "manifest.json"]
    for path in ours:
        _add(path, found.again)
    for path in set(files) - set(ours) - set(foreign):  # manifests
        if not any(other.parent == path.parent for other in foreign):
            _add(path, found.again)
    found.others += [(path, on_disk(path), "an object of yours") for path in foreign]
    toml = stack.prefect_toml
    if toml.is_file():
        if toml.read_text().startswith(TOML_HEADER):
            _add(toml, found.again)
        else:
            found.others.append((toml, on_disk(toml), "not written by `ups up`"))


def _generated() -> Iterator[str]:
    """`bucket/key` of the objects that the project's configs generate."""
    for path in PROJECT_CONFIGS.glob("*.yaml"):
        data = load_config(path).data
        for problem in filter(is_seeded_by_us, data.problems):
            for sources in (problem.sources or {}).values():
                yield from (f"{one.bucket or data.bucket}/{one.key}" for one in sources)


def _find_data(project: Path, found: Leftovers) -> None:
    """Fetched files, the cache, and the folders that benchmarks work in."""
    for path in sorted((project / DATA).rglob("*")):
        if path.is_dir():
            continue
        stamp = read_stamp(path)
        if BESIDE.fullmatch(path.name) or (stamp is not None and stamp.fetch):
            _add(path, found.again)
        else:
            found.others.append((path, on_disk(path), "not fetched by a run"))
    built = entries(project / CACHE)
    for entry in built:
        _add(entry.directory, found.again, partial(cache.remove, entry))
    for path in (project / CACHE).glob("*"):  # of builds that were cut short before they began
        if CONFIG_HASH.fullmatch(path.name) and path not in {e.directory.parent for e in built}:
            _add(path, found.again)
    _add(project / CACHE / ".prefect", found.again)
    for name in (".lock", *(scenario.name for scenario in SCENARIOS)):
        _add(project / BENCHMARKS / name, found.again)


def _find_results(project: Path, found: Leftovers) -> None:
    _add(project / RUNS / LOCK, found.again)
    for run in find_runs(project / RUNS):
        if (run.folder / CONFIG).is_file():  # else it only happens to be called like a run
            _add(run.folder, found.results, partial(runs.remove, run.folder))
    for name in HISTORY:
        _add(project / BENCHMARKS / name, found.results)
