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
        from ups.local_run import build_caches, stage_splits

        resolved = load_config(config, {**parse_settings(settings), **flags})
        with progress_shown() as show:
            staged = stage_splits(resolved, ("train", "val"), show)
            entries = build_caches(resolved, staged, show, overwrite=overwrite)
        cache_dir = resolved.training.latent_cache_dir
        if as_json:
            records = [
                {**entry.model_dump(mode="json"), "task": name, "cache_dir": str(cache_dir)}
                for name, entry in entries.items()
            ]
            print_json(records[0] if len(records) == 1 else records)
            return
        for name, entry in entries.items():
            verb = "reused" if entry.reused else "built"
            of_task = f" of {name}" if len(entries) > 1 else ""
            typer.echo(
                f"{verb} {entry.config_hash}{of_task} in {cache_dir}: "
                f"{entry.num_trajectories} trajectories, {entry.num_bytes / 1e6:.0f} MB, "
                f"{entry.seconds:.2f} s"
            )
