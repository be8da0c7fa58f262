"""The latent cache: is there an entry for this config, is it whole, and if not, why not."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ups.config import Problem, RunConfig
from ups.errors import CacheDamaged, CacheError
from ups.latents import store
from ups.latents.entries import Entry, entries
from ups.latents.key import ENCODED_SPLITS, explain_difference, hash_fields, key_fields
from ups.units import format_age, format_size
from ups.validate.check import Check, Checks
from ups.validate.sources import Known, Sources, latent_bytes, select

Found = Mapping[str, bool | None]
"""Problem → whether its latents are in the cache; None: not known, or none are needed."""


def to_build(found: Found) -> list[str]:
    """The problems whose latents a run is going to encode, as far as that is known."""
    return [name for name, is_cached in found.items() if is_cached is False]


def finds_entries(config: RunConfig, sources: Sources) -> dict[str, bool | None]:
    """Which latents a run finds in the cache, by a look at the pointers alone."""
    directory, names = config.training.latent_cache_dir, [p.name for p in config.data.problems]
    if config.features.preload == "off":
        return dict.fromkeys(names)
    if not config.features.reuse_cache or not any(directory.glob(f"*/{store.POINTER_NAME}")):
        return dict.fromkeys(names, False)
    found: dict[str, bool | None] = {}
    for problem in config.data.problems:
        fields, why_not = known_key_fields(config, sources, problem)
        named, _ = known_key_fields(config, [_as_named(known) for known in sources], problem)
        found[problem.name] = None
        if not why_not:
            hashes = {hash_fields(fields), hash_fields(named)}
            entry_dirs = [store.entry_dir(directory, config_hash) for config_hash in hashes]
            found[problem.name] = any(map(store.current_generation, entry_dirs))
    return found


def _as_named(known: Known) -> Known:
    """As if the file did not hold its parameter: only a look into the file says whether."""
    value = known.problem.parameter_beside(known.wanted.path.stem)
    return known if value is None else replace(known, parameter=value)


def validate_cache(config: RunConfig, sources: Sources) -> tuple[list[Check], Found]:
    """Look for the entry of each problem, and at what else is in the cache.

    Returns: the checks, and for each problem whether a run finds its latents in the cache.
    """
    checks = Checks("cache")
    directory, problems = config.training.latent_cache_dir, config.data.problems
    if config.features.preload == "off":
        checks.skip("entry", "features.preload is off, each batch is encoded on demand")
        return checks, {problem.name: None for problem in problems}
    if config.features.is_legacy:
        checks.skip("entry", "legacy mode wipes its cache and builds it anew")
        return checks, {problem.name: False for problem in problems}
    found = entries(directory)
    if not found:
        checks.ok("entry", f"no cache in {directory}: the first run builds it")
    is_cached: dict[str, bool | None] = {}
    hashes: list[str | None] = []
    for problem in problems:
        name = config.data.label(problem, "entry")
        fields, why_not = known_key_fields(config, sources, problem)
        hashes.append(None if why_not else hash_fields(fields))
        is_cached[problem.name] = None if found else False
        if found and why_not:
            checks.skip(name, f"{why_not}{_with_same_settings(directory, fields)}")
        elif found:
            is_cached[problem.name] = _check_entry(config, name, fields, found, checks)
    others = [e for e in found if e.config_hash not in hashes]
    _check_others(others, checks, may_be_ours=None in hashes)
    _check_budget(config, sources, checks)
    return checks, is_cached


class _Identity(NamedTuple):
    sha256: str
    rows: tuple[int, int] | None
    parameter: float | None


def known_key_fields(
    config: RunConfig, sources: Sources, problem: Problem
) -> tuple[dict[str, Any], str]:
    """The fields of a problem's cache key, and why those of its sources are not known, if so."""
    encoded = {split: select(sources, [split], [problem.name]) for split in ENCODED_SPLITS}
    missing = [split for split, known in encoded.items() if not known]
    unknown = [k.wanted.uri for known in encoded.values() for k in known if k.sha256 is None]
    why_not = ""
    if missing:
        why_not = f"the key depends on the data of {', '.join(missing)}, which are not known"
    elif unknown:
        why_not = f"the key depends on the SHA-256 of {', '.join(dict.fromkeys(unknown))}"
    identities: dict[str, list[_Identity]] = {
        split: [_Identity(k.sha256 or "", k.wanted.rows, k.parameter) for k in known]
        for split, known in encoded.items()
    }
    return key_fields(config.of_problem(problem), identities), why_not


def without_cached(config: RunConfig, sources: Sources, found: Found) -> list[Known]:
    """The sources as a run needs them: what it finds latents of is not fetched."""
    may_lack = config.features.stream != "off" and not config.features.is_legacy
    return [
        replace(known, fetch_bytes=0)
        if may_lack
        and found.get(known.problem.name)
        and known.wanted.split in ENCODED_SPLITS
        and not known.wanted.path.exists()
        else known
        for known in sources
    ]


def _check_entry(
    config: RunConfig, name: str, fields: dict[str, Any], found: list[Entry], checks: Checks
) -> bool:
    """Look at the entry with this key; returns whether a run reads it."""
    cache_dir, config_hash = config.training.latent_cache_dir, hash_fields(fields)
    ours = [entry for entry in found if entry.config_hash == config_hash]
    try:
        manifest = store.open_current(cache_dir, config_hash)
    except CacheDamaged as error:
        checks.fault(name, _damaged(config_hash, error), config_hash=config_hash)
        return False
    except CacheError:
        if partial := [entry for entry in ours if entry.state == "partial"]:
            text = f"{config_hash}: partial build, {partial[0].summary}; a run goes on from there"
            checks.ok(name, text, config_hash=config_hash)
        else:
            _explain_mismatch(cache_dir, name, fields, checks)
        return False
    current = next(entry for entry in ours if entry.generation == manifest.generation)
    age_s = time.time() - manifest.generated_at
    figures = {"config_hash": config_hash, "age_s": age_s, "num_bytes": manifest.num_bytes}
    text = (
        f"valid, hash={config_hash}, {current.summary}, {format_size(manifest.num_bytes)}, "
        f"built {format_age(age_s)} ago"
    )
    if config.features.reuse_cache:
        checks.ok(name, text, **figures)
    else:
        checks.warn(name, f"{text}; features.reuse_cache is off: it is built again", **figures)
    return config.features.reuse_cache


def _explain_mismatch(cache_dir: Path, name: str, fields: dict[str, Any], checks: Checks) -> None:
    """Compare with the entries of the same problem: the nearest, and in what it differs."""
    differences = {
        manifest.config_hash: explain_difference(fields, manifest.key_fields)
        for manifest in store.list_entries(cache_dir)
        if manifest.key_fields.get("task") == fields["task"]
    }
    if not differences:
        checks.ok(name, f"none of {fields['task']} in {cache_dir}: the first run builds it")
        return
    nearest, config_hash = min(differences, key=lambda h: len(differences[h])), hash_fields(fields)
    text = f"no entry {config_hash}, it is built; nearest is {nearest}: "
    text += ", ".join(differences[nearest])
    checks.warn(name, text, config_hash=config_hash, nearest=nearest, differs=differences[nearest])


def _check_others(others: list[Entry], checks: Checks, *, may_be_ours: bool) -> None:
    """Entries that a pointer names and nobody can read: a fault where one may be the config's."""
    for entry in (e for e in others if e.current and e.state == "damaged"):
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


def _check_budget(config: RunConfig, sources: Sources, checks: Checks) -> None:
    max_gb, needed = config.training.latent_cache_max_gb, latent_bytes(config, sources)
    if max_gb is None or needed is None:
        return
    text = f"{format_size(needed)} of latents, training.latent_cache_max_gb is {max_gb:g}"
    add = checks.warn if needed > max_gb * 1e9 else checks.ok
    add("budget", text, num_bytes=needed, max_bytes=int(max_gb * 1e9))
