"""`ups cache push` and `pull`, and what `list` and `prune` do with `--remote`.

They talk to the shared cache that a config names by `cache.remote`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from ups.cli import completion
from ups.cli.console import errors_shown, print_json, print_table, stopping
from ups.cli.options import KEY_HELP, ConfigArgument, JsonOption, SetOption, parse_settings
from ups.cli.places import load_config_here
from ups.errors import CacheError, ConfigError
from ups.progress import progress_shown
from ups.units import format_age, format_size

if TYPE_CHECKING:
    from ups.config import RunConfig
    from ups.latents.remote import Remote
    from ups.latents.remote_entries import RemoteEntry

KeysArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY]...",
        help=f"{KEY_HELP} Default: those of the config.",
        autocompletion=completion.cache_keys,
    ),
]


@contextmanager
def opened(config: RunConfig) -> Iterator[Remote]:
    """The shared cache that a config names.

    Raises:
        ConfigError: it names none.
    """
    from ups.latents.remote import Remote

    if config.cache.remote is None:
        raise ConfigError(
            "cache.remote: found none, expected s3://bucket/prefix: set it in the config"
        )
    with closing(Remote.opened(config)) as remote:
        yield remote


def push(
    config: ConfigArgument,
    keys: KeysArgument = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put entries of this machine into the shared cache.

    What is there already is not sent again. Without KEY, the entries that a run of CONFIG reads.
    """
    with errors_shown():
        from ups.latents.entries import entries, match_key
        from ups.latents.push import push as push_entry
        from ups.latents.shared_keys import keys_here

        resolved = load_config_here(config, parse_settings(settings))
        with opened(resolved) as remote, progress_shown() as show, stopping() as stop:
            if keys:
                here = entries(resolved.training.latent_cache_dir)
                chosen = [match_key(here, key) for key in keys]
            else:
                chosen = keys_here(resolved, stop)
            records = []
            for key in chosen:
                told = show(f"{key} pushed", "MB", 1e6)
                done = push_entry(remote, resolved, key, progress=told, stop=stop)
                records.append({"config_hash": key, **done._asdict()})
                if not as_json:
                    size = format_size(done.num_bytes)
                    how = "is there already" if done.was_there else f"pushed, {size}"
                    typer.echo(f"{key} {how}: {done.uri}")
        if as_json:
            print_json(records)


def pull(
    config: ConfigArgument,
    keys: KeysArgument = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring entries of the shared cache here, every chunk checked.

    Without KEY, the entries that a run of CONFIG reads; their keys are made of the manifests beside
    the objects. Exit code 1 where one is not there, or damaged.
    """
    with errors_shown():
        from ups.latents import store
        from ups.latents.entries import match_key
        from ups.latents.pull import Pull, pull_whole
        from ups.latents.remote_entries import remote_entries
        from ups.latents.shared_keys import keys_there

        resolved = load_config_here(config, parse_settings(settings))
        cache_dir = resolved.training.latent_cache_dir
        with opened(resolved) as remote, progress_shown() as show, stopping() as stop:
            if keys:
                chosen = [match_key(remote_entries(remote), key) for key in keys]
            else:
                chosen = keys_there(resolved, remote, stop)
            records = []
            for key in chosen:
                if store.valid_generation(cache_dir, key):
                    records.append({"config_hash": key, "num_bytes": 0, "was_there": True})
                    typer.echo(f"{key} is here already: {cache_dir}", err=as_json)
                    continue
                if (manifest := remote.find(key)) is None:
                    raise CacheError(f"no entry {key} in {remote.uri}: see `ups cache list`")
                told = show(f"{key} pulled", "MB", 1e6)
                done = pull_whole(Pull(remote, manifest, cache_dir), stop, told)
                records.append(
                    {"config_hash": key, "num_bytes": done.num_bytes, "was_there": False}
                )
                typer.echo(f"{key} {done}", err=as_json)
        if as_json:
            print_json(records)


def list_remote(config: RunConfig, *, as_json: bool) -> None:
    """List the entries of the shared cache."""
    from ups.latents.remote_entries import remote_entries

    with opened(config) as remote:
        found = remote_entries(remote)
        if as_json:
            print_json([entry.model_dump(mode="json") for entry in found])
            return
        _print(found)
        typer.echo(f"{_count(found)} in {remote.uri}")


def prune_remote(config: RunConfig, older_than_s: float, *, dry_run: bool, as_json: bool) -> None:
    """Remove generations that no run can pull, and nobody is about to point to."""
    from ups.latents.remote_entries import prune_remote as prune

    with opened(config) as remote:
        gone = prune(remote, older_than_s, dry_run=dry_run)
        if as_json:
            removed = {"removed": not dry_run}
            print_json([{**entry.model_dump(mode="json"), **removed} for entry in gone])
            return
        _print(gone)
        typer.echo(f"{'would be ' if dry_run else ''}removed: {_count(gone)}, of {remote.uri}")


def _print(found: Sequence[RemoteEntry]) -> None:
    if found:
        print_table([_row(entry) for entry in found], right=("size", "pushed"))


def _row(entry: RemoteEntry) -> dict[str, str]:
    role = {True: "current", False: "replaced", None: "pointer damaged"}[entry.current]
    return {
        "key": entry.config_hash,
        "state": f"{entry.state}, {role}" if entry.state != "partial" else entry.state,
        "config": entry.summary,
        "size": format_size(entry.num_bytes),
        "pushed": f"{format_age(time.time() - entry.changed_at)} ago",
    }


def _count(found: Sequence[RemoteEntry]) -> str:
    noun = "generation" if len(found) == 1 else "generations"
    return f"{len(found)} {noun}, {format_size(sum(entry.num_bytes for entry in found))}"
