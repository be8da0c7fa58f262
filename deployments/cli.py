"""The console script `ups`: the stack of this machine, runs on it, and the library's commands.

Whatever is slow to import is imported in the command that needs it: `ups --help` is instant.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ups.cli import app as ups_app

if TYPE_CHECKING:
    from deployments.layout import Stack
    from ups.config import RunConfig

INTERRUPTED = 130
TIMED_OUT = 124

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train neural PDE simulators on Prefect, on this machine's stack or without Prefect.",
)
app.add_typer(ups_app)

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


@app.command()
def up(host: Host = None, prefect_port: PrefectPort = None, s3_port: S3Port = None) -> None:
    """Start what is not running yet: Prefect server, object store, worker, deployments."""
    with _errors_shown():
        from deployments.layout import Stack

        stack = Stack.find(host, prefect_port, s3_port)
        _up(stack)
        typer.echo(f"UI    {stack.ui_url}")
        typer.echo("next  prefect deployment run train-burgers")


@app.command()
def down() -> None:
    """Stop what `up` and `run` started on this machine, and nothing else."""
    with _errors_shown():
        from deployments import stack as parts
        from deployments.layout import Stack

        if not parts.down(Stack.find(), _say):
            typer.echo("nothing was running")


@app.command()
def status() -> None:
    """Say which parts of the stack are running, and where."""
    with _errors_shown():
        from deployments.layout import Stack
        from deployments.stack import PARTS

        stack = Stack.find()
        places = {"prefect-server": stack.ui_url, "object-store": stack.s3_url, "worker": "local"}
        for part in reversed(PARTS):
            process = stack.processes.running(part)
            state = f"running  pid {process.pid:<7} {places[part]}" if process else "stopped"
            typer.echo(f"  {part:<15} {state}")
        typer.echo(f"  logs in {stack.folder / 'logs'}")


@app.command()
def run(
    config: Annotated[
        str, typer.Option("--config", "-c", help="A name in deployments/configs, or a path.")
    ] = "smoke",
    param: Annotated[
        list[str] | None,
        typer.Option(
            "--param", "-p", metavar="KEY=VALUE", help="A parameter of the flow, such as epochs=10."
        ),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(min=0, help="Seconds to follow the run (default: to its end)."),
    ] = None,
    host: Host = None,
    prefect_port: PrefectPort = None,
    s3_port: S3Port = None,
) -> None:
    """Train once through the deployment: `up`, data, `prefect deployment run`, live progress."""
    with _errors_shown():
        from deployments import follow as runs
        from deployments.layout import Stack
        from ups.config import CONFIG_DIR, load_config

        given = dict(_key_value(text) for text in param or [])
        if "config" in given:
            raise typer.BadParameter("give the config with --config, not with -p")
        overrides = _overrides(given.get("overrides"))
        resolved = load_config(config, overrides)
        if not (CONFIG_DIR / f"{config}.yaml").is_file():
            config = str(Path(config).resolve())  # the run has another working directory
        stack = Stack.find(host, prefect_port, s3_port)
        _up(stack, data_of=(config, overrides, resolved))
        run_id = runs.trigger(stack, runs.TRAIN, [f"config={config}", *(param or [])])
        typer.echo(f"run   {runs.run_url(stack, run_id)}")
        _follow(stack, run_id, timeout, resolved)


@app.command()
def benchmark(
    scenarios: Annotated[
        str,
        typer.Option(
            "--scenarios", "-s", help="Sets (nightly, plan, all) or scenarios, with commas between."
        ),
    ] = "nightly",
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each scenario.")] = 5,
    param: Annotated[
        list[str] | None,
        typer.Option(
            "--param",
            "-p",
            metavar="KEY=VALUE",
            help="A parameter of the flow, such as num_trajectories=2048.",
        ),
    ] = None,
    host: Host = None,
    prefect_port: PrefectPort = None,
    s3_port: S3Port = None,
) -> None:
    """Measure the startup in scenarios and compare: `up`, `prefect deployment run`, `report`."""
    with _errors_shown():
        from deployments import follow as runs
        from deployments.layout import Stack
        from deployments.report import show_of_run

        given = dict(_key_value(text) for text in param or [])
        stack = Stack.find(host, prefect_port, s3_port)
        _up(stack)
        names = json.dumps([name.strip() for name in scenarios.split(",")])
        parameters = [f"scenarios={names}", f"repeats={repeats}", *(param or [])]
        run_id = runs.trigger(stack, runs.BENCHMARK, parameters)
        typer.echo(f"run   {runs.run_url(stack, run_id)}")
        ended = _follow_to_end(stack, run_id, None)
        own = given.get("folder")
        show_of_run(Path(own.strip('"')) if own else None, run_id)
        _exit_unless_completed(stack, ended)


@app.command()
def report(
    ids: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ID [ID]]",
            help="A benchmark, or two to see what changed; the beginning of an id will do.",
        ),
    ] = None,
    history: Annotated[
        bool, typer.Option("--list", help="List the benchmarks, the newest first.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Figures as JSON.")] = False,
    csv: Annotated[
        Path | None, typer.Option(help="Write every phase of every run there, as CSV.")
    ] = None,
    parquet: Annotated[
        Path | None, typer.Option(help="The same as Parquet (needs the extra `parquet`).")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Of the benchmarks (default: data/benchmarks).")
    ] = None,
) -> None:
    """Show the latest benchmark, one by its id, or the difference of two."""
    with _errors_shown():
        from deployments.report import Report

        if len(ids or []) > 2:
            raise typer.BadParameter("give one id, or two")
        found = Report(folder)
        if csv or parquet:
            found.export(csv, parquet)
        elif history:
            found.show_list(as_json)
        else:
            found.show(ids or [], as_json)


@app.command()
def follow(
    run_id: Annotated[str, typer.Argument(metavar="ID", help="Id of a flow run.")],
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Seconds to follow the run (default: to its end).")
    ] = None,
) -> None:
    """Show the progress of a run that goes on, and its breakdown at the end."""
    with _errors_shown():
        from deployments.layout import Stack

        _follow(Stack.find(), run_id, timeout, None)


def _up(stack: Stack, data_of: tuple[str, dict[str, Any] | None, RunConfig] | None = None) -> None:
    """Start the stack; a data set that is missing is made while the server starts."""
    from deployments import stack as parts
    from ups.data.seed import is_seeded_by_us

    seeding: list[subprocess.Popen[bytes]] = []

    def start_seeding() -> None:
        if data_of and is_seeded_by_us(data_of[2]):
            command = [sys.executable, "-m", "deployments.seed", data_of[0]]
            command += [json.dumps(data_of[1])] if data_of[1] else []
            env = {**stack.prefect_env(), **stack.store_env()}
            seeding.append(subprocess.Popen(command, env=env))

    try:
        if not parts.up(stack, _say, store_is_up=start_seeding):
            typer.echo("the stack is running")
        if any(process.wait() for process in seeding):
            typer.echo("error: the data set could not be put into the object store", err=True)
            raise typer.Exit(1)
    except KeyboardInterrupt:
        typer.echo("\ninterrupted; `ups down` stops what was started", err=True)
        raise typer.Exit(INTERRUPTED) from None
    finally:
        for process in seeding:
            if process.poll() is None:
                process.terminate()
                process.wait()


def _follow(stack: Stack, run_id: str, timeout_s: float | None, config: RunConfig | None) -> None:
    from deployments import follow as runs

    ended = _follow_to_end(stack, run_id, timeout_s)
    _exit_unless_completed(stack, ended)
    _show_breakdown(run_id, config or _config_of(ended))
    typer.echo(f"run   {runs.run_url(stack, run_id)}")


def _follow_to_end(stack: Stack, run_id: str, timeout_s: float | None) -> dict[str, Any]:
    """The flow run as it ended; Ctrl-C, or the end of the time, leaves it running."""
    from deployments import follow as runs

    url = runs.run_url(stack, run_id)
    goes_on = (
        f"the run goes on: {url}\n"
        f"  follow it  ups follow {run_id}\n"
        f"  cancel it  prefect flow-run cancel {run_id}"
    )
    try:
        return runs.follow(stack, run_id, typer.echo, timeout_s)
    except KeyboardInterrupt:
        typer.echo("\n" + goes_on, err=True)
        raise typer.Exit(INTERRUPTED) from None
    except runs.RunTimeout as error:
        typer.echo(f"{error}; {goes_on}", err=True)
        raise typer.Exit(TIMED_OUT) from None


def _exit_unless_completed(stack: Stack, ended: dict[str, Any]) -> None:
    from deployments import follow as runs

    state = ended["state"]
    if state["type"] != "COMPLETED":
        typer.echo(f"run   {runs.run_url(stack, ended['id'])}")
        message = state["message"] or f"its log: {stack.processes.log_path('worker')}"
        typer.echo(f"error: the run ended {state['name']}: {message}", err=True)
        raise typer.Exit(1)


def _show_breakdown(run_id: str, config: RunConfig) -> None:
    from deployments import breakdown

    found = breakdown.read(config.runs_dir, run_id)
    if found is None:
        typer.echo(f"no breakdown.json of this run in {config.runs_dir}", err=True)
    else:
        breakdown.show(found)


def _config_of(flow_run: dict[str, Any]) -> RunConfig:
    from ups.config import load_config

    parameters = flow_run["parameters"]
    return load_config(parameters.get("config", "smoke"), parameters.get("overrides"))


def _key_value(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise typer.BadParameter(f"found {text!r}, expected KEY=VALUE", param_hint="--param")
    return key, value


def _overrides(text: str | None) -> dict[str, Any] | None:
    """The flow's parameter `overrides`, which may also change where the data lies."""
    if text is None:
        return None
    with contextlib.suppress(ValueError):
        if isinstance(found := json.loads(text), dict):
            return found
    raise typer.BadParameter(
        f'overrides: found {text!r}, expected JSON such as {{"training.batch_size": 24}}',
        param_hint="--param",
    )


def _say(part: str, seconds: float | None, what: str) -> None:
    took = "       " if seconds is None else f"{seconds:5.1f} s"
    typer.echo(f"  {part:<15} {took}  {what}")


@contextlib.contextmanager
def _errors_shown() -> Iterator[None]:
    """What is meant for the user ends in one message and exit code 1, without a traceback."""
    from ups.errors import UpsError

    try:
        yield
    except UpsError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    app()
