"""`ups sweep`: a config with several values, as runs of the deployment, then a table and a page."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deployments.cli.stack import Host, PartLines, PrefectPort, S3Port, bring_up
from ups.cli import completion
from ups.cli.console import (
    CANCELLED,
    FAILED,
    INTERRUPTED,
    TIMED_OUT,
    errors_shown,
    print_json,
    print_table,
)
from ups.cli.options import ConfigArgument, JsonOption, TimeoutOption, checked

if TYPE_CHECKING:
    from deployments.layout import Stack
    from deployments.sweep import SweptRun
    from ups.runs.index import RunFiles

app = typer.Typer()
NOTHING = "–"
SEED = "training.seed"
STARTUP = "TTFS less queue"


def _parse(settings: list[str]) -> dict[str, list[Any]]:
    from deployments.sweep import parse_axes

    return parse_axes(settings)


def _check_tag(tag: str) -> None:
    from ups.runs.folder import check_id

    check_id(tag.replace("-", ""))


@app.command(epilog="Example: ups sweep smoke --set latent.dim=16,32")
def sweep(
    config: ConfigArgument,
    settings: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="KEY=VALUE,…",
            help="Values to run, e.g. latent.dim=16,32,48; several keys: every combination.",
            callback=checked(_parse),
            autocompletion=completion.config_keys,
        ),
    ],
    tag: Annotated[
        str | None,
        typer.Option(help="Of the runs; an earlier sweep's is followed again.",
                     callback=checked(_check_tag)),
    ] = None,
    timeout: TimeoutOption = None,
    host: Host = None,
    prefect_port: PrefectPort = None,
    s3_port: S3Port = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Train with every combination of values.

    Through the deployment; Ctrl-C cancels what waits.
    """
    with errors_shown():
        from deployments import sweep as sweeps
        from deployments.follow import RunTimeout, as_parameter
        from deployments.layout import Stack
        from ups.config import load_config

        axes = _parse(settings)
        wanted = sweeps.points(config, axes)
        tag = tag or sweeps.make_tag(wanted[0].config.name, time.time())
        stack = Stack.find(host, prefect_port, s3_port)
        bring_up(stack, PartLines(as_json), data_of=(config, None, load_config(config)))
        typer.echo(f"sweep {tag}: {len(wanted)} runs, {stack.ui_url}/runs", err=as_json)

        def say(line: str) -> None:
            print(line, file=sys.stderr if as_json else sys.stdout, flush=True)

        code, runs = 0, list[sweeps.SweptRun]()
        try:
            sweeps.trigger(stack, as_parameter(config), wanted, tag, runs)
            sweeps.follow(stack, tag, runs, say, timeout)
        except RunTimeout as error:
            again = f"follow it again with the same command and --tag {tag}"
            typer.echo(f"{error}; it goes on: {again}", err=True)
            code = TIMED_OUT
        except KeyboardInterrupt:
            _stop(stack, tag, runs)
            code = INTERRUPTED
        except SystemExit:  # SIGTERM
            _stop(stack, tag, runs)
            raise
        # What all have in common needs no column, unless there is nothing else.
        swept = {key: values for key, values in axes.items() if len(values) > 1} or axes
        _show(runs, swept, tag, as_json)
        if code := code or _exit_code(runs):
            raise typer.Exit(code)


def _stop(stack: Stack, tag: str, runs: Sequence[SweptRun]) -> None:
    """Cancel what waits, and say what goes on."""
    from deployments.follow import run_url
    from deployments.sweep import cancel_waiting

    num = cancel_waiting(stack, tag, runs)
    typer.echo(f"\ncancelled what had not begun: {num} of {len(runs)} runs", err=True)
    for run in runs:
        if not run.has_ended:
            typer.echo(
                f"{run.point.title} goes on: {run_url(stack, run.id)}\n"
                f"  follow it  ups follow {run.id}\n"
                f"  cancel it  prefect flow-run cancel {run.id}",
                err=True,
            )


def _exit_code(runs: Sequence[SweptRun]) -> int:
    kinds = {run.state_type for run in runs}
    if kinds & {"FAILED", "CRASHED"}:
        for run in runs:
            if run.state_type in ("FAILED", "CRASHED"):
                typer.echo(f"error: {run.point.title}: {run.message or run.state_name}", err=True)
        return FAILED
    return CANCELLED if "CANCELLED" in kinds else 0


def _show(runs: Sequence[SweptRun], axes: dict[str, list[Any]], tag: str, as_json: bool) -> None:
    """A row for each run, one for each setting over its seeds, and the page of all."""
    from ups.runs.index import read_run

    files = {run.id: read_run(folder) for run in runs if (folder := run.folder) is not None}
    page = _write_page(runs, files, axes, tag)
    if as_json:
        print_json(
            {
                "tag": tag,
                "runs": [
                    {
                        "flow_run_id": run.id,
                        "name": run.point.title,
                        "overrides": dict(run.point.overrides),
                        "state": run.state_name,
                        "message": run.message,
                        "summary": files[run.id].summary().model_dump(mode="json")
                        if run.id in files
                        else None,
                    }
                    for run in runs
                ],
                "page": str(page) if page else None,
            }
        )
        return
    print_table(_rows(runs, files, axes), right=(STARTUP, "test nRMSE"))
    if settings := _settings(runs, files, axes):
        print_table(settings, right=("runs", "median", "lowest", "highest"), title="Test nRMSE")
    if page:
        typer.echo(f"the page: {page}")


def _rows(
    runs: Sequence[SweptRun], files: dict[str, RunFiles], axes: dict[str, list[Any]]
) -> list[dict[str, str]]:
    rows = []
    for run in runs:
        found = files[run.id].summary() if run.id in files else None
        ttfs_s, nrmse = (found.ttfs_s, found.nrmse_rollout) if found else (None, None)
        breakdown = files[run.id].breakdown if run.id in files else None
        if ttfs_s is not None and breakdown is not None:  # it waited there for the others
            ttfs_s -= breakdown.phase_seconds.get("queue", 0.0)
        rows.append(
            {
                "id": run.id[-8:],
                **{key: json.dumps(run.point.overrides[key]) for key in axes},
                "state": run.state_name,
                STARTUP: NOTHING if ttfs_s is None else f"{ttfs_s:.2f} s",
                "test nRMSE": NOTHING if nrmse is None else f"{nrmse:.4f}",
            }
        )
    return rows


def _settings(
    runs: Sequence[SweptRun], files: dict[str, RunFiles], axes: dict[str, list[Any]]
) -> list[dict[str, str]]:
    """What each setting scores over its seeds; nothing where there is one seed."""
    if len(axes.get(SEED, ())) < 2:
        return []
    scores: dict[tuple[str, ...], list[float]] = {}
    keys = [key for key in axes if key != SEED]
    for run in runs:
        found = files[run.id].summary().nrmse_rollout if run.id in files else None
        if found is not None:
            setting = tuple(json.dumps(run.point.overrides[key]) for key in keys)
            scores.setdefault(setting, []).append(found)
    return [
        {
            **dict(zip(keys, setting, strict=True)),
            "runs": str(len(of)),
            "median": f"{statistics.median(of):.4f}",
            "lowest": f"{min(of):.4f}",
            "highest": f"{max(of):.4f}",
        }
        for setting, of in scores.items()
    ]


def _write_page(
    runs: Sequence[SweptRun], files: dict[str, RunFiles], axes: dict[str, list[Any]], tag: str
) -> Path | None:
    """Beside the folders of the runs; None where no run has left one."""
    from ups import PROJECT_DIR
    from ups.runs.compare_page import write_page

    if not files:
        return None
    page = PROJECT_DIR / runs[0].point.config.runs_dir / f"{tag}.html"
    write_page(page, list(files.values()), f"{tag}: {', '.join(axes)}")
    return page
