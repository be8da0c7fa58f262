"""`ups cache build | list | show | verify | prune | rm | push | pull`: the latent cache.

Exit code 1: an error, damage that `verify` found, or an entry in use that `rm` left alone.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ups.cli import cache_shared, completion
from ups.cli.console import errors_shown, print_json, print_table
from ups.cli.options import (
    KEY_HELP,
    CacheConfigOption,
    CacheDirOption,
    ConfigArgument,
    JsonOption,
    SetOption,
    checked,
    once,
    parse_settings,
)
from ups.cli.places import load_config_here, of_project
from ups.errors import CacheError
from ups.progress import progress_shown
from ups.units import format_size, parse_age, parse_size

if TYPE_CHECKING:
    from ups.config import RunConfig

app = typer.Typer(no_args_is_help=True, help="The latent cache.")

RemoteOption = Annotated[
    bool, typer.Option("--remote", help="In the shared cache, cache.remote of --config.")
]
KeyArgument = Annotated[
    str, typer.Argument(metavar="KEY", help=KEY_HELP, autocompletion=completion.cache_keys)
]


@app.command(epilog="Example: ups cache build smoke --device cpu --batch-size 16")
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
    """Stage train and val, and encode them into the cache.

    What is there already is left as it is, unless --overwrite says otherwise.
    """
    given = {
        "training.device": device,
        "training.encode_batch_size": batch_size,
        "training.num_workers": num_workers,
        "training.latent_cache_dtype": cache_dtype,
    }
    flags = {key: value for key, value in given.items() if value is not None}
    with errors_shown():
        from ups.data.sources import open_store
        from ups.pipeline.phases import build_caches, stage_splits
        from ups.pipeline.state import sharing_of

        resolved = load_config_here(
            config, once([*parse_settings(settings).items(), *flags.items()])
        )
        with progress_shown() as show:
            staged = stage_splits(resolved, ("train", "val"), open_store(resolved), show)
            entries = build_caches(resolved, staged, show, overwrite=overwrite)
        cache_dir = resolved.training.latent_cache_dir
        if (sharing := sharing_of(resolved)) is not None:
            keys = {name: entry.config_hash for name, entry in entries.items()}
            sharing.push(None, keys, threading.Event())  # the log says what came of it
        if as_json:
            records = [
                {**entry.model_dump(mode="json"), "task": name, "cache_dir": str(cache_dir)}
                for name, entry in entries.items()
            ]
            print_json(records[0] if len(records) == 1 else records)
            return
        for name, entry in entries.items():
            verb = "reused" if entry.reused else "built"
            of_problem = f" of {name}" if len(entries) > 1 else ""
            typer.echo(
                f"{verb} {entry.config_hash}{of_problem} in {cache_dir}: "
                f"{entry.num_trajectories} trajectories, {format_size(entry.num_bytes)}, "
                f"{entry.seconds:.2f} s"
            )


@app.command("list", epilog="Example: ups cache list data/latent_cache --json")
def list_(
    place: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="The cache directory, like --dir.")
    ] = None,
    directory: CacheDirOption = None,
    config: CacheConfigOption = None,
    remote: RemoteOption = False,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the entries with size, age, last use and state."""
    if remote:
        with errors_shown():
            of = _sharing(config, settings, place, directory)
            cache_shared.list_remote(of, as_json=as_json)
        return
    with errors_shown():
        from ups.cli import cache_rows as rows
        from ups.latents.entries import entries

        _refuse_settings(settings)
        cache_dir = _cache_dir(config, place, directory)
        found = entries(cache_dir)
        if as_json:
            print_json([entry.model_dump(mode="json") for entry in found])
            return
        if found:
            print_table([rows.row(entry) for entry in found], right=("size", "built", "last use"))
        typer.echo(f"{rows.count(found)} in {cache_dir}")


@app.command(epilog="Example: ups cache show 3fa9 --json")
def show(
    key: KeyArgument,
    directory: CacheDirOption = None,
    config: CacheConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one entry: what its key is made of, and its files."""
    with errors_shown():
        from ups.cli import cache_rows as rows
        from ups.latents.entries import entries

        found = entries(_cache_dir(config, directory))
        records = [rows.record(entry) for entry in rows.of_key(found, key)]
        if as_json:
            print_json(records)
            return
        for record in records:
            files = record.pop("files")
            for name, value in rows.readable(record).items():
                typer.echo(f"{name:<14} {value}")
            if files:
                typer.echo("")
                print_table([{name: str(file[name]) for name in file} for file in files])


@app.command(epilog="Example: ups cache verify 3fa9 --dir data/latent_cache")
def verify(
    keys: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY]...",
            help=f"{KEY_HELP} Default: all.",
            autocompletion=completion.cache_keys,
        ),
    ] = None,
    directory: CacheDirOption = None,
    config: CacheConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read entries again and compare all checksums.

    Exit code 1 where one differs.
    """
    with errors_shown():
        from ups.cli import cache_rows as rows
        from ups.latents.entries import entries
        from ups.latents.entries import verify as find_damage

        found = entries(_cache_dir(config, directory))
        if keys:
            chosen = [rows.current(rows.of_key(found, key)) for key in keys]
        else:
            chosen = [entry for entry in found if entry.current]
        results = []
        for entry in chosen:
            started = time.monotonic()
            with progress_shown() as show_progress:
                damage = find_damage(entry, show_progress(f"{entry.config_hash} read", "MB", 1e6))
            results.append((entry, damage))
            if not as_json:
                seconds = time.monotonic() - started
                word = "damaged" if damage else "whole  "
                size = format_size(entry.num_bytes)
                typer.echo(f"{word} {entry.config_hash}  {size} in {seconds:.2f} s")
                for item in damage:
                    typer.echo(f"  {item.reason}")
        if as_json:
            print_json([rows.verified(entry, damage) for entry, damage in results])
        if damaged := [entry.config_hash for entry, damage in results if damage]:
            remedy = f"`ups cache rm {' '.join(damaged)}`, and the next run builds them again"
            raise CacheError(f"{len(damaged)} of {len(results)} entries are damaged: {remedy}")


@app.command(epilog="Example: ups cache prune --max-size 50GB --older-than 30d --dry-run")
def prune(
    max_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Remove the least recently used until 50GB, say, stay.",
            callback=checked(parse_size),
        ),
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(
            metavar="AGE",
            help="Remove what was not used for 30d, say.",
            callback=checked(parse_age),
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would go, and remove nothing.")
    ] = False,
    directory: CacheDirOption = None,
    config: CacheConfigOption = None,
    remote: RemoteOption = False,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove entries by age and size, never one in use.

    What no run can read goes first: damaged and replaced entries, and builds that were cut short.
    What a running job reads or builds stays. With --remote, what no pointer names goes, if it is
    older than a day (or --older-than): never what a run pulls.
    """
    if remote:
        if max_size:
            raise typer.BadParameter("--max-size: the shared cache is pruned by age alone")
        with errors_shown():
            age_s = parse_age(older_than or "1d")
            of = _sharing(config, settings, directory)
            cache_shared.prune_remote(of, age_s, dry_run=dry_run, as_json=as_json)
        return
    with errors_shown():
        from ups.cli import cache_rows as rows
        from ups.latents.entries import entries
        from ups.latents.prune import plan_prune, remove

        _refuse_settings(settings)
        max_bytes = parse_size(max_size) if max_size else None
        older_than_s = parse_age(older_than) if older_than else None
        cache_dir = _cache_dir(config, directory)
        found = entries(cache_dir)
        plan = plan_prune(found, max_bytes, older_than_s)
        gone = [removal for removal in plan if dry_run or remove(removal.entry)]
        if as_json:
            print_json([{**r.model_dump(mode="json"), "removed": not dry_run} for r in gone])
            return
        if gone:
            shown = [{**rows.row(removal.entry), "why": removal.reason} for removal in gone]
            columns = ("key", "size", "why", "config")
            print_table([{name: row[name] for name in columns} for row in shown], right=("size",))
        removed = [removal.entry for removal in gone]
        left = [entry for entry in found if entry not in removed]
        in_use = sum(entry.in_use for entry in left)
        would = "would be " if dry_run else ""
        typer.echo(f"{would}removed: {rows.count(removed)}")
        typer.echo(f"{would}left in {cache_dir}: {rows.count(left)}, {in_use} in use")


@app.command(epilog="Example: ups cache rm 3fa9 b07c")
def rm(
    keys: Annotated[
        list[str],
        typer.Argument(metavar="KEY...", help=KEY_HELP, autocompletion=completion.cache_keys),
    ],
    directory: CacheDirOption = None,
    config: CacheConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove entries for good, never one in use.

    Exit code 1 where a running job reads or builds one.
    """
    with errors_shown():
        from ups.cli import cache_rows as rows
        from ups.latents.entries import entries

        found = entries(_cache_dir(config, directory))
        chosen = [rows.of_key(found, key) for key in keys]  # an unknown key removes nothing
        by_key = {of_key[0].config_hash: of_key for of_key in chosen}
        removed = {
            key: rows.num_bytes(of_key) for key, of_key in by_key.items() if rows.remove_all(of_key)
        }
        refused = [key for key in by_key if key not in removed]
        if as_json:
            print_json({"removed": removed, "in_use": refused})
        else:
            for key, num_bytes in removed.items():
                typer.echo(f"removed {key}, {format_size(num_bytes)}")
        if refused:
            raise CacheError(
                f"{', '.join(refused)}: in use by a running job, not removed; wait for it"
            )


app.command("push", epilog="Example: ups cache push smoke --set cache.remote=s3://latents/team")(
    cache_shared.push
)
app.command("pull", epilog="Example: ups cache pull smoke --set cache.remote=s3://latents/team")(
    cache_shared.pull
)


def _sharing(config: str | None, settings: list[str] | None, *given: Path | None) -> RunConfig:
    """The config whose shared cache is meant."""
    if config is None or any(given):
        raise typer.BadParameter("--remote: name the config whose cache.remote it is, by --config")
    return load_config_here(config, parse_settings(settings))


def _refuse_settings(settings: list[str] | None) -> None:
    if settings:
        raise typer.BadParameter("--set: goes with --remote alone; name the directory by --dir")


def _cache_dir(config: str | None, *given: Path | None) -> Path:
    places = [place for place in given if place is not None]
    if len(places) + (config is not None) > 1:
        raise typer.BadParameter("give the cache directory once: as DIR, by --dir or by --config")
    from ups.config import Training, load_config

    if config is not None:
        return of_project(load_config(config).training.latent_cache_dir)
    if not places:
        return of_project(Training().latent_cache_dir)
    if not places[0].is_dir():  # the default one may be yet to come; a name is a typing mistake
        what = "is a file" if places[0].exists() else "is not there"
        raise CacheError(f"{places[0]} {what}, expected the directory of a latent cache")
    return places[0]
