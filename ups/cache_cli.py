"""`ups cache build | list | show | verify | prune | rm`: the latent cache from a shell.

Exit code 1: an error, damage that `verify` found, or an entry in use that `rm` left alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ups import cache_rows, completion
from ups.cache_build import build
from ups.cli_options import KEY_HELP, CacheConfigOption, CacheDirOption, JsonOption, checked
from ups.console import errors_shown, print_json, print_table
from ups.errors import CacheError
from ups.progress import progress_shown
from ups.units import format_size, parse_age, parse_size

if TYPE_CHECKING:
    from ups.latents.entries import Damage, Entry

app = typer.Typer(no_args_is_help=True, help="The latent cache.")
app.command(epilog="Example: ups cache build smoke --device cpu --batch-size 16")(build)

KeyArgument = Annotated[
    str, typer.Argument(metavar="KEY", help=KEY_HELP, autocompletion=completion.cache_keys)
]


@app.command("list", epilog="Example: ups cache list data/latent_cache --json")
def list_(
    place: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="The cache directory, like --dir.")
    ] = None,
    directory: CacheDirOption = None,
    config: CacheConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the entries with size, age, last use and state."""
    with errors_shown():
        cache_dir = _cache_dir(config, place, directory)
        found = _entries(cache_dir)
        if as_json:
            print_json([entry.model_dump(mode="json") for entry in found])
            return
        if found:
            print_table(
                [cache_rows.row(entry) for entry in found], right=("size", "built", "last use")
            )
        typer.echo(f"{cache_rows.count(found)} in {cache_dir}")


@app.command(epilog="Example: ups cache show 3fa9 --json")
def show(
    key: KeyArgument,
    directory: CacheDirOption = None,
    config: CacheConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one entry: what its key is made of, and its files."""
    with errors_shown():
        records = [
            cache_rows.record(entry)
            for entry in _of_key(_entries(_cache_dir(config, directory)), key)
        ]
        if as_json:
            print_json(records)
            return
        for record in records:
            files = record.pop("files")
            for name, value in cache_rows.readable(record).items():
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
        from ups.latents import entries

        found = _entries(_cache_dir(config, directory))
        if keys:
            chosen = [_current(_of_key(found, key)) for key in keys]
        else:
            chosen = [entry for entry in found if entry.current]
        results: list[tuple[Entry, list[Damage]]] = []
        for entry in chosen:
            started = time.monotonic()
            with progress_shown() as show_progress:
                told = show_progress(f"{entry.config_hash} read", "MB", 1e6)
                damage = entries.verify(entry, told)
            results.append((entry, damage))
            if not as_json:
                seconds = time.monotonic() - started
                word = "damaged" if damage else "whole  "
                size = format_size(entry.num_bytes)
                typer.echo(f"{word} {entry.config_hash}  {size} in {seconds:.2f} s")
                for item in damage:
                    typer.echo(f"  {item.reason}")
        if as_json:
            print_json([cache_rows.verified(entry, damage) for entry, damage in results])
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
    as_json: JsonOption = False,
) -> None:
    """Remove entries by age and size, never one in use.

    What no run can read goes first: damaged and replaced entries, and builds that were cut short.
    What a running job reads or builds stays.
    """
    with errors_shown():
        max_bytes = parse_size(max_size) if max_size else None
        older_than_s = parse_age(older_than) if older_than else None
        from ups.latents.prune import plan_prune, remove

        cache_dir = _cache_dir(config, directory)
        found = _entries(cache_dir)
        plan = plan_prune(found, max_bytes, older_than_s)
        gone = [removal for removal in plan if dry_run or remove(removal.entry)]
        if as_json:
            print_json([{**r.model_dump(mode="json"), "removed": not dry_run} for r in gone])
            return
        if gone:
            print_table([cache_rows.removal_row(removal) for removal in gone], right=("size",))
        left = [e for e in found if e not in [removal.entry for removal in gone]]
        in_use = sum(entry.in_use for entry in left)
        would = "would be " if dry_run else ""
        typer.echo(f"{would}removed: {cache_rows.count([removal.entry for removal in gone])}")
        typer.echo(f"{would}left in {cache_dir}: {cache_rows.count(left)}, {in_use} in use")


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
        found = _entries(_cache_dir(config, directory))
        chosen = [_of_key(found, key) for key in keys]  # an unknown key removes nothing
        by_key = {of_key[0].config_hash: of_key for of_key in chosen}
        removed = {
            key: cache_rows.num_bytes(of_key)
            for key, of_key in by_key.items()
            if _remove_all(of_key)
        }
        refused = [key for key in by_key if key not in removed]
        if as_json:
            print_json({"removed": removed, "in_use": refused})
        else:
            for key, num_bytes in removed.items():
                typer.echo(f"removed {key}, {format_size(num_bytes)}")
        if refused:
            raise CacheError(f"{', '.join(refused)}: in use by a running job, not removed")


def _remove_all(of_key: Sequence[Entry]) -> bool:
    """Whether all generations of an entry are gone; none is touched while one is in use."""
    from ups.latents.prune import remove

    if any(entry.in_use for entry in of_key):
        return False
    return all(remove(entry) or not entry.directory.exists() for entry in of_key)


def _entries(cache_dir: Path) -> list[Entry]:
    from ups.latents.entries import entries

    return entries(cache_dir)


def _of_key(found: Sequence[Entry], prefix: str) -> list[Entry]:
    from ups.latents.entries import match_key

    key = match_key(found, prefix)
    return [entry for entry in found if entry.config_hash == key]


def _current(of_key: Sequence[Entry]) -> Entry:
    for entry in of_key:
        if entry.current:
            return entry
    raise CacheError(f"{of_key[0].config_hash} has no complete build: there is nothing to verify")


def _cache_dir(config: str | None, *given: Path | None) -> Path:
    places = [place for place in given if place is not None]
    if len(places) + (config is not None) > 1:
        raise typer.BadParameter("give the cache directory once: as DIR, by --dir or by --config")
    from ups.config import Training, load_config

    if config is not None:
        return load_config(config).training.latent_cache_dir
    if not places:
        return Training().latent_cache_dir
    if not places[0].is_dir():  # the default one may be yet to come; a name is a typing mistake
        what = "is a file" if places[0].exists() else "is not there"
        raise CacheError(f"{places[0]} {what}, expected the directory of a latent cache")
    return places[0]
