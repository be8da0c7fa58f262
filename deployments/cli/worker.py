"""`ups worker`: runs of a work pool, on a server that is there already, go on here."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from ups import PROJECT_DIR
from ups.cli.console import errors_shown

app = typer.Typer()


@app.command(epilog="Example: ups worker --pool team --queue urgent")
def worker(
    pool: Annotated[str, typer.Option("--pool", metavar="NAME", help="Work pool to serve.")],
    queue: Annotated[
        list[str] | None,
        typer.Option("--queue", help="A work queue of it (default: all, by their priorities)."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Of the worker (default: this machine's).")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Runs at once.")] = 1,
) -> None:
    """Run here what is triggered for a work pool, until Ctrl-C.

    PREFECT_API_URL names the server, PREFECT_API_AUTH_STRING or PREFECT_API_KEY is the login, as
    for `ups deploy`; runs read the object store with the AWS_… of this shell. They start as soon as
    they are triggered, from a process that is kept ready.
    """
    with errors_shown():
        from deployments.layout import BIN_DIR, WORKER_ENV
        from deployments.serve import find_served

        server = find_served(pool, queue or [])
        arguments = [pool, "--name", name or platform.node(), "--limit", str(limit), "--end-runs"]
        # An own one for each: sockets have short names, and exec keeps the process id.
        socket = Path(tempfile.gettempdir()) / f"ups-worker-{os.getpid()}.sock"
        arguments += ["--warm-socket", str(socket)]
        arguments += [word for one in queue or [] for word in ("--queue", one)]
        fixed = {"PREFECT_PLUGINS_ENABLED": "false", "PYTHONUNBUFFERED": "1"}
        fixed["PATH"] = f"{BIN_DIR}{os.pathsep}{os.environ.get('PATH', os.defpath)}"  # runs' python
        # A machine of a team's server may start anew: four minutes in place of Prefect's one.
        env = {**WORKER_ENV, "PREFECT_CLIENT_MAX_RETRIES": "7", **os.environ, **server.env, **fixed}
        typer.echo(f"{server.shown}: serving {pool}; Ctrl-C ends it, and the runs under way")
        sys.stdout.flush()
        os.chdir(PROJECT_DIR)  # runs work in the folder of their worker, and find the flows there
        command = [sys.executable, "-m", "deployments.worker", *arguments]
        os.execve(sys.executable, command, env)
