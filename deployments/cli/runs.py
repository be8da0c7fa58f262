"""`ups run | follow | benchmark | report`: runs through the deployments of this machine's stack."""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from deployments.cli.stack import Host, PartLines, PrefectPort, S3Port, bring_up
from ups.cli import completion
from ups.cli.console import CANCELLED, FAILED, INTERRUPTED, TIMED_OUT, errors_shown, print_json
from ups.cli.options import (
    CONFIG_HELP,
    JsonOption,
    ParamOption,
    TimeoutOption,
    checked,
    key_value,
    once,
)
from ups.errors import ConfigError
from ups.progress import Show, progress_shown

if TYPE_CHECKING:
    from deployments.layout import Stack
    from deployments.servers import NamedServer

app = typer.Typer()

OTHER_PARAMETERS = ("overrides", "features", "overwrite_cache", "resume_from")
OF_NO_KEY = {  # parameters that change no key of the config: type, and what is allowed
    "overwrite_cache": (bool, "true or false"),
    "resume_from": (str, "the path of a checkpoint"),
}

# What a run's log says again and again, and a bar shows: (what, unit, done and in all).
COUNTED = (
    ("trained", "epochs", re.compile(r"\bepoch (\d+)/(\d+):")),
    ("measured", "runs", re.compile(r"\brun (\d+) of (\d+):")),
)


@app.command(epilog="Example: ups run --config smoke -p epochs=5")
def run(
    config: Annotated[
        str, typer.Option("--config", "-c", help=CONFIG_HELP, autocompletion=completion.configs)
    ] = "smoke",
    param: ParamOption = None,
    timeout: TimeoutOption = None,
    host: Host = None,
    prefect_port: PrefectPort = None,
    s3_port: S3Port = None,
    as_json: JsonOption = False,
) -> None:
    """Train once through the deployment, and follow the run.

    The stack is started and the data are made where they are missing: `up`, data,
    `prefect deployment run`, `follow`.
    """
    given = dict(map(key_value, param or []))
    if "config" in given:
        raise typer.BadParameter("give the config with --config, not with -p")
    overrides, changes = _overrides(given.get("overrides")), _changes(given)
    with errors_shown():
        from deployments import follow as runs
        from deployments.layout import Stack
        from ups.config import load_config

        resolved = load_config(config, {**(overrides or {}), **changes})
        config = runs.as_parameter(config)
        stack = Stack.find(host, prefect_port, s3_port)
        bring_up(stack, PartLines(as_json), data_of=(config, overrides, resolved))
        run_id = runs.trigger(stack, runs.TRAIN, [f"config={config}", *(param or [])])
        _say_url(stack, run_id, as_json)
        _follow(stack, run_id, timeout, as_json, resolved.runs_dir)


@app.command(epilog="Example: ups follow 136ff0b8-3c1d-4a52-9f0e-6f2f5b7e9a10 --timeout 600")
def follow(
    run_id: Annotated[str, typer.Argument(metavar="ID", help="Id of a flow run.")],
    timeout: TimeoutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Follow a run that goes on, and show its breakdown at the end.

    One that the stack of this machine does not know is looked for at the server of PREFECT_API_URL
    or of Prefect's active profile.
    """
    with errors_shown():
        from deployments.follow import server_of
        from deployments.layout import Stack

        _follow(server_of(Stack.find(), run_id), run_id, timeout, as_json)


@app.command(epilog="Example: ups benchmark -s cold,warm --repeats 3")
def benchmark(
    scenarios: Annotated[
        list[str],
        typer.Option(
            "--scenarios",
            "-s",
            help="Sets (nightly, plan, all) or scenarios, with commas between.",
            callback=checked(lambda texts: _check_scenarios(_names(texts))),
            autocompletion=completion.scenarios,
        ),
    ] = ["nightly"],  # noqa: B006 (never changed)
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each scenario.")] = 5,
    param: ParamOption = None,
    host: Host = None,
    prefect_port: PrefectPort = None,
    s3_port: S3Port = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the startup in scenarios, and compare.

    The stack is started where it is needed: `up`, `prefect deployment run`, `report`.
    """
    given = dict(map(key_value, param or []))
    for name in ("scenarios", "repeats"):
        if name in given:
            raise typer.BadParameter(f"give the {name} with --{name}, not with -p")
    with errors_shown():
        from deployments import follow as runs
        from deployments.cli.report import show_of_run
        from deployments.layout import Stack

        stack = Stack.find(host, prefect_port, s3_port)
        bring_up(stack, PartLines(as_json))
        parameters = [
            f"scenarios={json.dumps(_names(scenarios))}",
            f"repeats={repeats}",
            *(param or []),
        ]
        run_id = runs.trigger(stack, runs.BENCHMARK, parameters)
        _say_url(stack, run_id, as_json)
        ended = _follow_to_end(stack, run_id, None, as_json)
        own = given.get("folder")
        show_of_run(Path(own.strip('"')) if own else None, run_id, as_json)
        _exit_unless_completed(stack, ended)


def _names(texts: Sequence[str]) -> list[str]:
    """Of `-s cold,warm -s legacy` all three."""
    return [name.strip() for text in texts for name in text.split(",")]


def _check_scenarios(names: Sequence[str]) -> None:
    from ups.startup.measure.scenarios import check_names

    check_names(names)


@app.command(epilog="Example: ups report --list --json")
def report(
    ids: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ID [ID]]",
            help="A benchmark, or two to see what changed; the beginning of an id will do.",
            autocompletion=completion.benchmarks,
        ),
    ] = None,
    history: Annotated[
        bool, typer.Option("--list", help="List the benchmarks, the newest first.")
    ] = False,
    as_json: JsonOption = False,
    csv: Annotated[
        Path | None, typer.Option(help="Write every phase of every run there, as CSV.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Of the benchmarks (default: data/benchmarks).")
    ] = None,
) -> None:
    """Show a benchmark, or what changed between two.

    Without an id it is the latest.
    """
    if len(ids or []) > 2:
        raise typer.BadParameter("give one id, or two")
    with errors_shown():
        from deployments.cli.report import Report

        found = Report(folder)
        if csv:
            found.export(csv)
        elif history:
            found.show_list(as_json)
        else:
            found.show(ids or [], as_json)


def _follow(
    server: Stack | NamedServer,
    run_id: str,
    timeout_s: float | None,
    as_json: bool,
    runs_dir: Path | None = None,
) -> None:
    """Follow a training to its end, and show its breakdown.

    Args:
        runs_dir: None: of the config that the run was triggered with, as it is now.
    """
    from deployments.follow import run_url
    from ups import PROJECT_DIR
    from ups.cli.runs import show_breakdown
    from ups.runs.index import breakdown_of

    ended = _follow_to_end(server, run_id, timeout_s, as_json)
    runs_dir = runs_dir or _runs_dir_of(ended)
    found = breakdown_of(PROJECT_DIR / runs_dir, UUID(run_id)) if runs_dir else None
    if as_json:
        state = {"state": ended["state"]["name"], "message": ended["state"]["message"]}
        left = found.model_dump(mode="json") if found else None
        url = run_url(server, run_id)
        print_json({"flow_run_id": run_id, "url": url, **state, "breakdown": left})
    _exit_unless_completed(server, ended)
    if as_json:
        return
    if found is None:
        where = PROJECT_DIR / runs_dir if runs_dir else "its folder"
        typer.echo(f"no breakdown.json of this run in {where}: its page has it", err=True)
    else:
        show_breakdown(found)
    _say_url(server, run_id, as_error=False)


def _follow_to_end(
    server: Stack | NamedServer, run_id: str, timeout_s: float | None, as_json: bool
) -> dict[str, Any]:
    """The flow run as it ended; Ctrl-C, or the end of the time, leaves it running."""
    from deployments import follow as runs

    goes_on = (
        f"the run goes on: {runs.run_url(server, run_id)}\n"
        f"  follow it  ups follow {run_id}\n"
        f"  cancel it  prefect flow-run cancel {run_id}"
    )

    def say(line: str) -> None:  # typer.echo would write across the bars
        print(line, file=sys.stderr if as_json else sys.stdout, flush=True)

    try:
        if not sys.stderr.isatty():  # the lines themselves tell how far it has got
            return runs.follow(server, run_id, say, timeout_s)
        with progress_shown() as show:
            return runs.follow(server, run_id, _with_bars(say, show), timeout_s)
    except KeyboardInterrupt:
        typer.echo("\n" + goes_on, err=True)
        raise typer.Exit(INTERRUPTED) from None
    except runs.RunTimeout as error:
        typer.echo(f"{error}; {goes_on}", err=True)
        raise typer.Exit(TIMED_OUT) from None


def _with_bars(say: Callable[[str], None], show: Show) -> Callable[[str], None]:
    bars = [(pattern, show(what, unit)) for what, unit, pattern in COUNTED]

    def say_and_count(line: str) -> None:
        say(line)
        for pattern, update in bars:
            if found := pattern.search(line):
                update(int(found[1]), int(found[2]))

    return say_and_count


def _exit_unless_completed(server: Stack | NamedServer, ended: dict[str, Any]) -> None:
    state = ended["state"]
    if state["type"] == "CANCELLED":
        _say_url(server, ended["id"], as_error=True)
        typer.echo("the run was cancelled", err=True)
        raise typer.Exit(CANCELLED)
    if state["type"] != "COMPLETED":
        _say_url(server, ended["id"], as_error=True)
        from deployments.layout import Stack

        log = server.processes.log_path("worker") if isinstance(server, Stack) else "on its page"
        message = state["message"] or f"its log: {log}"
        typer.echo(f"error: the run ended {state['name']}: {message}", err=True)
        raise typer.Exit(FAILED)


def _say_url(server: Stack | NamedServer, run_id: str, as_error: bool) -> None:
    from deployments.follow import run_url

    typer.echo(f"run   {run_url(server, run_id)}", err=as_error)


def _runs_dir_of(flow_run: dict[str, Any]) -> Path | None:
    """Where a run has its folder, by its parameters; None if its config is faulty."""
    from ups.config import load_config

    parameters = flow_run["parameters"]
    try:
        config = parameters.get("config", "smoke")
        return load_config(config, parameters.get("overrides")).runs_dir
    except ConfigError:
        return None


def _changes(given: Mapping[str, str]) -> dict[str, Any]:
    """What the flow's own parameters change of the config, by dotted keys.

    Raises:
        BadParameter: the flow has none of this name, or it takes no such value.
    """
    from ups.config import PARAMETERS

    keys = {**PARAMETERS, "features": "features"}
    known = [*PARAMETERS, *OTHER_PARAMETERS]
    if unknown := [name for name in given if name not in known]:
        close = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(known)}"
        raise typer.BadParameter(f"{unknown[0]}: no parameter of the flow; {hint}")
    changes = {}
    for name, text in given.items():
        try:
            value = json.loads(text)  # as `prefect deployment run` takes it
        except ValueError:
            value = text
        if name in keys and value is not None:
            changes[keys[name]] = value
        kind, allowed = OF_NO_KEY.get(name, (object, ""))
        if not isinstance(value, kind):
            raise typer.BadParameter(f"{name}: found {text!r}, expected {allowed}")
    return changes


def _overrides(text: str | None) -> dict[str, Any] | None:
    """The flow's parameter `overrides`, which may also change where the data lies."""
    if text is None:
        return None
    fault = f'found {text!r}, expected JSON such as {{"training.pairs_per_step": 40}}'
    try:
        if isinstance(found := json.loads(text, object_pairs_hook=once), dict):
            return found
    except ConfigError as error:
        fault = str(error)
    except ValueError:
        pass  # no JSON, as `fault` says
    raise typer.BadParameter(f"overrides: {fault}", param_hint="--param")
