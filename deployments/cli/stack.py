"""`ups up | down | status`: the stack of this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deployments.cli.clean import say_what_stays
from ups.cli.console import FAILED, INTERRUPTED, errors_shown, print_json, print_table
from ups.cli.options import JsonOption

if TYPE_CHECKING:
    from deployments.layout import Stack
    from ups.config import RunConfig

app = typer.Typer()
LAST = "default: as last time, at first"
Host = Annotated[
    str | None,
    typer.Option(
        envvar="UPS_HOST",
        help=f"Address that UI, API and object store listen on ({LAST} 127.0.0.1).",
    ),
]
PrefectPort = Annotated[
    int | None,
    typer.Option(
        envvar="UPS_PREFECT_PORT", min=1, max=65535, help=f"Port of the UI and API ({LAST} 4200)."
    ),
]
S3Port = Annotated[
    int | None,
    typer.Option(
        envvar="UPS_S3_PORT", min=1, max=65535, help=f"Port of the object store ({LAST} 9000)."
    ),
]


class PartLines:
    """Takes what is done with each part of the stack; a line for each.

    Attributes:
        rows: the same as data.
    """

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.rows: list[dict[str, Any]] = []

    def __call__(self, part: str, seconds: float | None, what: str) -> None:
        self.rows.append({"part": part, "seconds": seconds, "what": what})
        took = "       " if seconds is None else f"{seconds:5.1f} s"
        typer.echo(f"  {part:<15} {took}  {what}", err=self.as_json)


@app.command(epilog="Example: ups up --prefect-port 4300")
def up(
    host: Host = None,
    prefect_port: PrefectPort = None,
    s3_port: S3Port = None,
    as_json: JsonOption = False,
) -> None:
    """Start Prefect server, object store and worker, and deploy.

    What runs already is left alone.
    """
    with errors_shown():
        from deployments.layout import Stack

        stack, say = Stack.find(host, prefect_port, s3_port), PartLines(as_json)
        bring_up(stack, say)
        if as_json:
            print_json({"ui_url": stack.ui_url, "s3_url": stack.s3_url, "started": say.rows})
            return
        typer.echo(f"UI    {stack.ui_url}")
        typer.echo("next  prefect deployment run train-burgers")


@app.command(epilog="Example: ups down")
def down(as_json: JsonOption = False) -> None:
    """Stop what `up` and `run` started, and nothing else."""
    with errors_shown():
        from deployments import stack as parts
        from deployments.layout import Stack

        say = PartLines(as_json)
        stack = Stack.find()
        stopped = parts.down(stack, say)
        if as_json:
            print_json(say.rows)
            return
        if not stopped:
            typer.echo(f"nothing was running in {stack.folder}")
        say_what_stays(stack)


@app.command(epilog="Example: ups status --json")
def status(as_json: JsonOption = False) -> None:
    """Say which parts of the stack run, and where."""
    with errors_shown():
        from deployments.layout import Stack
        from deployments.stack import PARTS

        stack = Stack.find()
        places = {"prefect-server": stack.ui_url, "object-store": stack.s3_url, "worker": "local"}
        running = {part: stack.processes.running(part) for part in reversed(PARTS)}
        rows = [
            {
                "part": part,
                "state": "running" if process else "stopped",
                "pid": process.pid if process else None,
                "place": places[part] if process else None,
            }
            for part, process in running.items()
        ]
        logs = stack.folder / "logs"
        if as_json:
            print_json({"parts": rows, "logs": str(logs)})
            return
        print_table([{key: str(row[key] or "") for key in row} for row in rows])
        typer.echo(f"logs in {logs}")


def bring_up(
    stack: Stack,
    say: PartLines,
    data_of: tuple[str, dict[str, Any] | None, RunConfig] | None = None,
) -> None:
    """Start the stack; a data set that is missing is made while the server starts.

    Args:
        data_of: a config: its name or path, overrides, and what they come to.
    """
    from deployments import stack as parts
    from ups.data.seed import is_seeded_by_us

    _say_which_server(stack)
    seeding: list[subprocess.Popen[bytes]] = []

    def start_seeding() -> None:
        if data_of and any(map(is_seeded_by_us, data_of[2].data.problems)):
            command = [sys.executable, "-m", "deployments.seed", data_of[0]]
            command += [json.dumps(data_of[1])] if data_of[1] else []
            env = {**stack.prefect_env(), **stack.store_env()}
            output = sys.stderr.fileno() if say.as_json else None
            seeding.append(subprocess.Popen(command, env=env, stdout=output))

    try:
        if not parts.up(stack, say, store_is_up=start_seeding):
            typer.echo("the stack is running", err=say.as_json)
        if any(process.wait() for process in seeding):
            typer.echo("error: the data set could not be put into the object store", err=True)
            raise typer.Exit(FAILED)
    except KeyboardInterrupt:
        typer.echo("\ninterrupted; `ups down` stops what was started", err=True)
        raise typer.Exit(INTERRUPTED) from None
    finally:
        for process in seeding:
            if process.poll() is None:
                process.terminate()
                process.wait()


def _say_which_server(stack: Stack) -> None:
    """A shell may name another server, which `prefect` goes to and the stack's commands do not."""
    from ups.data.s3errors import redacted

    named = os.environ.get("PREFECT_API_URL", "").rstrip("/")
    if named not in ("", stack.api_url):
        typer.echo(
            f"note: PREFECT_API_URL names {redacted(named)}; this is the stack of this machine at "
            f"{stack.api_url}. There: `ups deploy`, `prefect deployment run`, `ups follow`",
            err=True,
        )
