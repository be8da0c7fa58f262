"""The library's commands, which need no Prefect: `ups cache …` and `ups train`."""

from __future__ import annotations

import secrets
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from ups import cache_cli
from ups.config import SPLITS, RunConfig, Split, load_config, parse_settings, read_config
from ups.console import errors_shown, progress_line
from ups.data.sources import Staged
from ups.runs_cli import runs

app = typer.Typer(no_args_is_help=True, add_completion=False)
cache = typer.Typer(no_args_is_help=True, help="The latent cache.")
cache.add_typer(cache_cli.app)
app.add_typer(cache, name="cache")
app.add_typer(runs, name="runs")

ConfigArgument = Annotated[
    str, typer.Argument(help="A config's name (smoke, train_burgers_32dim, …) or path.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a value, e.g. latent.dim=64."),
]


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
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Check config, data, cache, memory, disk, device and checkpoint; estimate the startup.

    Nothing is downloaded. Exit code 0: valid, perhaps with warnings; 1: faults.
    """
    from ups.validate_cli import show_validation

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


@cache.command(epilog="Example: ups cache build smoke --device cpu --batch-size 16")
def build(
    config: ConfigArgument,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Trajectories per batch.")] = None,
    num_workers: Annotated[int | None, typer.Option(help="Threads.")] = None,
    cache_dtype: Annotated[str | None, typer.Option(help="float16, bfloat16, float32.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Build again what is there.")] = False,
    settings: SetOption = None,
) -> None:
    """Stage train and val, and encode them into the cache unless that is done already."""
    given = {
        "training.device": device,
        "training.encode_batch_size": batch_size,
        "training.num_workers": num_workers,
        "training.latent_cache_dtype": cache_dtype,
    }
    flags = {key: value for key, value in given.items() if value is not None}
    with errors_shown():
        resolved = load_config(config, {**parse_settings(settings), **flags})
        from ups.pipeline import build_cache

        staged = _stage(resolved, ("train", "val"))
        entry = build_cache(
            resolved, staged, overwrite=overwrite, progress=progress_line("encoded", "trajectories")
        )
        verb = "reused" if entry.reused else "built"
        typer.echo(
            f"{verb} {entry.config_hash} in {resolved.training.latent_cache_dir}: "
            f"{entry.num_trajectories} trajectories, {entry.num_bytes / 1e6:.0f} MB, "
            f"{entry.seconds:.2f} s"
        )


@app.command()
def train(
    config: ConfigArgument,
    settings: SetOption = None,
    resume: Annotated[Path | None, typer.Option(help="Go on from this checkpoint.")] = None,
    run_id: Annotated[
        str | None, typer.Option(help="Name the run; an interrupted one of that name goes on.")
    ] = None,
) -> None:
    """Train and score the operator in this process: download, cache, load, train, evaluate."""
    with errors_shown():
        parsed = read_config(config, parse_settings(settings))
        from ups.pipeline import build_cache, load_latents
        from ups.runs import open_run_dir, recorded
        from ups.training.evaluate import evaluate
        from ups.training.loop import train as train_operator
        from ups.validate.head import require_valid

        require_valid(parsed, resume, ask_torch=True)
        resolved = parsed.valid()
        started = time.time()
        run_dir = open_run_dir(resolved, run_id or secrets.token_hex(4))
        typer.echo(f"run folder {run_dir}")
        with recorded(run_dir, command=shlex.join(["ups", *sys.argv[1:]])):
            staged = _stage(resolved, SPLITS)
            entry = None
            if resolved.features.preload != "off":
                overwrite = not resolved.features.reuse_cache
                show = progress_line("encoded", "trajectories")
                entry = build_cache(resolved, staged, overwrite=overwrite, progress=show)
            latents = load_latents(resolved, staged, entry)
            try:
                result = train_operator(resolved, latents, run_dir, resume=resume)
                scores = evaluate(
                    resolved, result.checkpoint, staged["test"], latents.encoder, run_dir
                )
            finally:
                latents.close()
        if result.first_step_at is not None:
            typer.echo(f"first optimizer step {result.first_step_at - started:.2f} s after start")
        typer.echo(
            f"test rollout nRMSE {scores.rollout['nRMSE']:.4f}, "
            f"persistence {scores.persistence_rollout['nRMSE']:.4f}; see {run_dir}"
        )


def _stage(config: RunConfig, splits: tuple[Split, ...]) -> dict[str, list[Staged]]:
    from concurrent.futures import ThreadPoolExecutor

    from ups.data.sources import open_store, stage

    store = open_store(config)

    def one(split: Split) -> list[Staged]:
        show = progress_line(f"[{split}] fetched", "MB", 1e6)
        return stage(config, split, store, progress=show)

    workers = len(splits) if config.features.parallel_downloads else 1
    with ThreadPoolExecutor(workers) as pool:
        return dict(zip(splits, pool.map(one, splits), strict=True))
