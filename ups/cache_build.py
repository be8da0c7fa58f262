"""`ups cache build`: stage the data of a config, and encode it."""

from __future__ import annotations

from typing import Annotated

import typer

from ups.cli_options import ConfigArgument, JsonOption, SetOption, parse_settings
from ups.console import errors_shown, print_json
from ups.progress import progress_shown


def build(
    config: ConfigArgument,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Trajectories per batch.")] = None,
    num_workers: Annotated[int | None, typer.Option(help="Threads.")] = None,
    cache_dtype: Annotated[str | None, typer.Option(help="float16, bfloat16, float32.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Build again what is there.")] = False,
    settings: SetOption = None,
    as_json: JsonOption = False,
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
        from ups.config import load_config
        from ups.local_run import stage_splits
        from ups.pipeline import build_cache

        resolved = load_config(config, {**parse_settings(settings), **flags})
        with progress_shown() as show:
            staged = stage_splits(resolved, ("train", "val"), show)
            told = show("encoded", "trajectories")
            entry = build_cache(resolved, staged, overwrite=overwrite, progress=told)
        cache_dir = resolved.training.latent_cache_dir
        if as_json:
            print_json({**entry.model_dump(mode="json"), "cache_dir": str(cache_dir)})
            return
        verb = "reused" if entry.reused else "built"
        typer.echo(
            f"{verb} {entry.config_hash} in {cache_dir}: "
            f"{entry.num_trajectories} trajectories, {entry.num_bytes / 1e6:.0f} MB, "
            f"{entry.seconds:.2f} s"
        )
