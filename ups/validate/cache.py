"""The latent cache: is there an entry for this config, is it whole, and if not, why not."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

from ups.config import Parsed, RunConfig
from ups.errors import CacheError
from ups.latents import store
from ups.latents.entries import Entry, entries
from ups.latents.key import explain_difference, hash_fields
from ups.units import format_age, format_size
from ups.validate.check import Check, Checks, with_defaults
from ups.validate.entry import Found, cache_key_fields
from ups.validate.sources import Sources, latent_bytes


def validate_cache(parsed: Parsed, sources: Sources) -> tuple[list[Check], Found]:
    """
    Returns: the checks, and for each task whether a run finds its latents there.
    """
    config, checks = parsed.config, Checks("cache")
    directory, tasks = config.training.latent_cache_dir, config.data.tasks
    if config.features.preload == "off":
        checks.skip("entry", "features.preload is off, each batch is encoded on demand")
        return checks, {task.name: None for task in tasks}
    if config.features.is_legacy:
        checks.skip("entry", "legacy mode wipes its cache and builds it anew")
        return checks, {task.name: False for task in tasks}
    note = with_defaults(parsed, ["training.latent_cache_dir"])
    found = entries(directory)
    if not found:
        checks.ok("entry", f"no cache in {directory}: the first run builds it{note}")
    is_there: dict[str, bool | None] = {}
    hashes: list[str | None] = []
    for task in tasks:
        name = config.data.label(task, "entry")
        fields, why_not = cache_key_fields(parsed, sources, task)
        config_hash = hash_fields(fields) if fields and not why_not else None
        hashes.append(config_hash)
        is_there[task.name] = None if found else False
        if found and config_hash is not None and fields is not None:
            wanted = _Wanted(name, config_hash, fields)
            is_there[task.name] = _check_entry(config, wanted, found, checks)
        elif found:
            near = "" if fields is None else _with_same_settings(directory, fields)
            checks.skip(name, f"{why_not}{near}{note}")
    others = [e for e in found if e.config_hash not in hashes]
    _check_others(others, checks, may_be_ours=None in hashes)
    _check_budget(parsed, sources, checks)
    return checks, is_there


class _Wanted(NamedTuple):
    """The entry of a task: the name of its check, its key, and what that is made of."""

    name: str
    config_hash: str
    fields: dict[str, Any]


def _check_entry(config: RunConfig, wanted: _Wanted, found: list[Entry], checks: Checks) -> bool:
    cache_dir = config.training.latent_cache_dir
    name, config_hash, _ = wanted
    ours = [entry for entry in found if entry.config_hash == config_hash]
    current = next((entry for entry in ours if entry.current), None)
    if current is None:
        partial = [entry for entry in ours if entry.state == "partial"]
        if partial:
            text = f"{config_hash}: partial build, {partial[0].summary}; a run goes on from there"
            checks.ok(name, text, config_hash=config_hash)
        else:
            _explain_mismatch(cache_dir, wanted, checks)
        return False
    try:
        manifest = store.open_current(cache_dir, config_hash)
    except CacheError as error:
        checks.fault(name, _damaged(config_hash, error), config_hash=config_hash)
        return False
    age_s = time.time() - manifest.generated_at
    figures = {"config_hash": config_hash, "age_s": age_s, "num_bytes": manifest.num_bytes}
    text = (
        f"valid, hash={config_hash}, {current.summary}, {format_size(manifest.num_bytes)}, "
        f"built {format_age(age_s)} ago"
    )
    if config.features.reuse_cache:
        checks.ok(name, text, **figures)
        return True
    checks.warn(name, f"{text}; features.reuse_cache is off: it is built again", **figures)
    return False


def _explain_mismatch(cache_dir: Path, wanted: _Wanted, checks: Checks) -> None:
    """Compare with the entries of the same task: which one is nearest, and in what it differs."""
    name, config_hash, fields = wanted
    differences = {
        manifest.config_hash: explain_difference(fields, manifest.key_fields)
        for manifest in store.list_entries(cache_dir)
        if manifest.key_fields.get("task") == fields["task"]
    }
    if not differences:
        checks.ok(name, f"none of {fields['task']} in {cache_dir}: the first run builds it")
        return
    nearest = min(differences, key=lambda key: len(differences[key]))
    text = f"no entry {config_hash}, it is built; nearest is {nearest}: "
    text += ", ".join(differences[nearest])
    checks.warn(name, text, config_hash=config_hash, nearest=nearest, differs=differences[nearest])


def _check_others(others: list[Entry], checks: Checks, *, may_be_ours: bool) -> None:
    """Entries that a pointer names and nobody can read: a fault where one may be the config's."""
    for entry in others:
        if not entry.current or entry.state != "damaged":
            continue
        try:
            store.open_current(entry.directory.parent.parent, entry.config_hash)
        except CacheError as error:
            add = checks.fault if may_be_ours else checks.warn
            add("other entry", _damaged(entry.config_hash, error), config_hash=entry.config_hash)


def _damaged(config_hash: str, error: CacheError) -> str:
    kind = {"no manifest": "no metadata", "unreadable manifest": "corrupt metadata"}
    what = next((word for sign, word in kind.items() if sign in str(error)), "damaged")
    reason = str(error).splitlines()[0]
    return f"{config_hash}: {what}, {reason}; remove it by `ups cache rm {config_hash}`"


def _with_same_settings(directory: Path, fields: dict[str, Any]) -> str:
    """Which entries differ in nothing but, perhaps, their data."""
    wanted = {name: value for name, value in fields.items() if name != "sources"}
    same = [
        manifest.config_hash
        for manifest in store.list_entries(directory)
        if all(manifest.key_fields.get(name) == value for name, value in wanted.items())
    ]
    return f"; {', '.join(same)} has these settings" if same else "; no entry has these settings"


def _check_budget(parsed: Parsed, sources: Sources, checks: Checks) -> None:
    config = parsed.config
    max_gb, needed = config.training.latent_cache_max_gb, latent_bytes(config, sources)
    if max_gb is None or needed is None:
        return
    note = with_defaults(parsed, ["latent", "training.latent_cache_dtype"])
    text = f"{format_size(needed)} of latents, training.latent_cache_max_gb is {max_gb:g}{note}"
    add = checks.warn if needed > max_gb * 1e9 else checks.ok
    add("budget", text, num_bytes=needed, max_bytes=int(max_gb * 1e9))
