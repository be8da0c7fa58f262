"""`ups clean`, and what `ups down` says stays on disk."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ups import PROJECT_DIR
from ups.cli.console import errors_shown
from ups.units import format_size

if TYPE_CHECKING:
    from deployments.layout import Stack
    from deployments.leftovers import Leftover

app = typer.Typer()


@app.command(epilog="Example: ups clean --dry-run")
def clean(
    everything: Annotated[
        bool, typer.Option("--all", help="Runs and the history of benchmarks, too.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would go, and remove nothing.")
    ] = False,
) -> None:
    """Remove what this project made; never what you made.

    Environment, stack, generated and fetched data, cache. On a terminal it asks about runs and
    benchmarks, which nothing makes again; elsewhere they stay unless --all is given. What you put
    into the data folder or into the object store stays, and is listed.
    """
    with errors_shown():
        from deployments.layout import Stack, require_clone
        from deployments.leftovers import find, remove_empty

        require_clone()
        stack = Stack.find()
        found = find(PROJECT_DIR, stack)
        for path, num_bytes, why in found.others:
            typer.echo(f"stays    {_shown(path)}  {format_size(num_bytes)}, {why}")
        results = sum(one.num_bytes for one in found.results)
        what = f"runs and benchmarks, {format_size(results)}"
        if found.results and not everything and not dry_run and _can_ask():
            everything = typer.confirm(f"remove {what}, which nothing makes again?", default=False)
        if found.results and not everything:
            typer.echo(f"stays    {what}: `make clean ARGS=--all` removes them, too")
        chosen = [*(found.results if everything else ()), *found.again]
        gone = [one for one in chosen if dry_run or one.remove()]
        for one in chosen:
            if one not in gone:
                typer.echo(f"stays    {_shown(one.path)}: a process uses it")
        if not dry_run:
            remove_empty(PROJECT_DIR, stack, gone)
        _say_gone(gone, "would go" if dry_run else "removed ")


def _can_ask() -> bool:
    return sys.stdin.isatty()


def say_what_stays(stack: Stack) -> None:
    """A line with what the project takes on disk once its processes are stopped."""
    from deployments.leftovers import sizes

    found = sizes(PROJECT_DIR, stack)
    if found:
        listed = ", ".join(f"{_shown(path)} {format_size(size)}" for path, size in found.items())
        typer.echo(f"on disk  {listed}; `make clean` removes what this project made")


def _say_gone(gone: list[Leftover], did: str) -> None:
    """A line for each folder of the project, and the sum."""
    folders: dict[str, int] = {}
    for one in gone:
        name = _shown(one.path)
        if name.endswith("__pycache__"):
            name = "__pycache__"
        elif not name.startswith("/"):
            name = "/".join(
                Path(name).parts[:2] if name.startswith("data/") else name.split("/")[:1]
            )
        folders[name] = folders.get(name, 0) + one.num_bytes
    for name, num_bytes in folders.items():
        if num_bytes:  # neither empty files nor links
            typer.echo(f"{did} {name}  {format_size(num_bytes)}")
    total = format_size(sum(folders.values()))
    typer.echo(f"{did} {total} in {PROJECT_DIR}")


def _shown(path: Path) -> str:
    return str(path.relative_to(PROJECT_DIR) if path.is_relative_to(PROJECT_DIR) else path)
