"""The library's commands, which need no Prefect: validate, train, use, data, cache, runs, vast."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from ups.cli import cache, data, operator, runs, vast
from ups.cli.console import errors_shown, print_json
from ups.cli.options import ConfigArgument, JsonOption, RunIdOption, SetOption, parse_settings
from ups.cli.places import load_config_here
from ups.machine.torch_import import collector_at_rest, load_libraries_beside
from ups.progress import progress_shown

app = typer.Typer(no_args_is_help=True, add_completion=False)
app.add_typer(operator.app)
app.add_typer(cache.app, name="cache")
app.add_typer(data.app, name="data")
app.add_typer(runs.app, name="runs")
app.add_typer(vast.app, name="vast")


@app.command(epilog="Example: ups validate smoke --set latent.dim=64 --json")
def validate(
    config: ConfigArgument,
    settings: SetOption = None,
    resume: Annotated[
        Path | None, typer.Option(help="The checkpoint that the run is to go on from.")
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Leave the object store alone.")
    ] = False,
    sample: Annotated[
        int, typer.Option(min=1, help="Trajectories of each file to search for NaN.")
    ] = 32,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds to wait for the object store.")
    ] = 5.0,
    benchmarks: Annotated[
        Path | None, typer.Option(help="Folder of the benchmarks (default: data/benchmarks).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check a config, its data and this machine before a run.

    Config, data, cache, memory, disk, device and checkpoint; and an estimate of the startup.
    Nothing is downloaded. Exit code 0: valid, perhaps with warnings; 1: faults.
    """
    from ups.cli.validate import show_validation

    show_validation(
        config,
        settings,
        as_json=as_json,
        resume=resume,
        offline=offline,
        num_sampled=sample,
        timeout_s=timeout,
        benchmarks=benchmarks,
    )


@app.command(epilog="Example: ups train smoke --set stages.operator.epochs=5")
def train(
    config: ConfigArgument,
    settings: SetOption = None,
    resume: Annotated[Path | None, typer.Option(help="Go on from this checkpoint.")] = None,
    run_id: RunIdOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train and score the operator here, without Prefect.

    A whole run in this process: download, cache, load, train, evaluate.
    """
    with errors_shown():
        load_libraries_beside()
        with collector_at_rest():
            from ups.config import load_changed
            from ups.machine.ranks import Place
            from ups.pipeline.local_run import LocalRun

        given = parse_settings(settings)
        _, changed = load_changed(config, given)
        if (place := Place.of_environment()) is not None and place.rank > 0:
            from ups.pipeline.followers import follow

            with progress_shown() as show:
                follow(load_config_here(config, given), place, show)
            return
        run = LocalRun(load_config_here(config, given), run_id, resume, changed)
        typer.echo(f"run folder {run.run_dir.absolute()}", err=as_json)
        command = shlex.join(["ups", *sys.argv[1:]])
        with progress_shown() as show:
            metrics = run.run(show, command)
        if as_json:
            print_json({"folder": str(run.run_dir), "metrics": metrics})
            return
        if (ttfs_s := metrics.get("startup/ttfs_s")) is not None:
            typer.echo(f"first optimizer step {ttfs_s:.2f} s after start")
        of_problems = {
            f"test/{problem.name}": f"  {problem.name}" for problem in run.config.data.problems
        }
        for prefix, name in {"test": "test", **of_problems}.items():
            if (nrmse := metrics.get(f"{prefix}/nrmse_rollout")) is not None:
                persistence = metrics[f"{prefix}/nrmse_persistence_rollout"]
                typer.echo(f"{name} rollout nRMSE {nrmse:.4f}, persistence {persistence:.4f}")
        typer.echo(f"see {run.run_dir}")
