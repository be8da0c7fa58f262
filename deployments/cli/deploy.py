"""`ups deploy`: the project's deployments, on a Prefect server that is there already."""

from __future__ import annotations

import dataclasses
import re
from typing import Annotated

import typer

from deployments.pools import PoolKind
from ups.cli.console import errors_shown, print_json
from ups.cli.options import JsonOption

app = typer.Typer()


@app.command(epilog="Example: ups deploy --pool team")
def deploy(
    pool: Annotated[
        str, typer.Option("--pool", metavar="NAME", help="Work pool; made where it is missing.")
    ],
    kind: Annotated[
        PoolKind, typer.Option("--pool-type", help="What its workers start runs in.")
    ] = "process",
    name: Annotated[
        list[str] | None,
        typer.Option("--name", help="A deployment of prefect.yaml (default: train-burgers)."),
    ] = None,
    image: Annotated[
        str | None, typer.Option(help="Image of a run's container, with docker and kubernetes.")
    ] = None,
    queue: Annotated[
        str | None,
        typer.Option(help="Work queue; made where it is missing. It ends the deployments' names."),
    ] = None,
    priority: Annotated[
        int | None, typer.Option(min=1, help="Of the queue: 1 goes first (default: last).")
    ] = None,
    at_once: Annotated[
        int | None,
        typer.Option(min=1, help="Runs of a deployment at once (default: as prefect.yaml says)."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Deploy to an existing Prefect server, or to Prefect Cloud.

    PREFECT_API_URL names it, else the folder's prefect.toml, else Prefect's active profile;
    PREFECT_API_AUTH_STRING or PREFECT_API_KEY is the login. Doing it again changes nothing but what
    has changed here. If something is wrong, nothing is made.
    """
    if image is not None and kind == "process":
        raise typer.BadParameter("--image goes with --pool-type docker or kubernetes")
    if priority is not None and queue is None:
        raise typer.BadParameter("--priority goes with --queue")
    if queue is not None and not re.fullmatch(r"[A-Za-z0-9][\w.-]*", queue):
        raise typer.BadParameter(f"--queue: found {queue!r}, expected letters, digits, - _ and .")
    with errors_shown():
        from deployments.deploy import Changes
        from deployments.deploy import deploy as deploy_there

        changes = Changes(image, queue, at_once)
        done = deploy_there(pool, kind, name or [], changes, priority)
        if as_json:
            print_json(dataclasses.asdict(done))
            return
        typer.echo(f"server       {done.server}")
        typer.echo(f"work pool    {pool}, {kind}, {'made' if done.made_pool else 'was there'}")
        typer.echo(f"deployments  {', '.join(done.deployments)}")
        start = "ups worker" if kind == "process" else "prefect worker start"
        typer.echo(f"next         {start} --pool {pool}  (where runs are to run)")
        typer.echo(f"             prefect deployment run {done.deployments[0]}")
