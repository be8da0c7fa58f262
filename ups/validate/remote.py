"""The shared cache: which entries a run would pull, and what is wrong there."""

from __future__ import annotations

import time
from contextlib import closing

from ups.config import Problem, RunConfig
from ups.errors import UpsError
from ups.latents.key import ENCODED_SPLITS, hash_fields
from ups.units import format_age, format_size
from ups.validate.cache import Found, known_key_fields
from ups.validate.check import Checks
from ups.validate.sources import Sources, select


def validate_remote(config: RunConfig, sources: Sources, found: Found) -> tuple[Checks, Found]:
    """Ask for the entry of each problem that is not here, as a run does: a round trip each.

    Args:
        found: problem → whether its latents are in the cache on this machine.
    Returns: the checks, and the problems whose latents a run pulls.
    """
    checks, hits = Checks("cache"), dict[str, bool | None]()
    features = config.features
    if config.cache.remote is None:
        return checks, hits
    may_pull = features.stream != "off" and features.preload != "off" and features.reuse_cache
    if not may_pull or features.is_legacy:
        checks.skip("shared", "the features have a run build its latents: nothing is pulled")
        return checks, hits
    for problem in config.data.problems:
        if not found.get(problem.name):
            hits[problem.name] = _look(config, sources, problem, checks)
    return checks, hits


def _look(config: RunConfig, sources: Sources, problem: Problem, checks: Checks) -> bool:
    """Whether a run pulls the latents of a problem."""
    from ups.latents.remote import Remote, reason_of

    name, remote = config.data.label(problem, "shared"), config.cache.remote
    encoded = select(sources, ENCODED_SPLITS, [problem.name])
    if all(known.wanted.path.exists() for known in encoded):
        checks.ok(name, "nothing is pulled, as the files are here: they are encoded")
        return False
    fields, why_not = known_key_fields(config, sources, problem)
    if why_not:
        checks.skip(name, why_not)
        return False
    config_hash = hash_fields(fields)
    try:
        with closing(Remote.opened(config)) as opened:
            manifest = opened.find(config_hash)
    except UpsError as error:
        text = f"{remote}: a miss, the latents are built here: {reason_of(error)}"
        checks.warn(name, text, config_hash=config_hash)
        return False
    if manifest is None:
        checks.ok(name, f"no {config_hash} in {remote}: the first run builds it and pushes it")
        return False
    size, age_s = manifest.num_bytes, time.time() - manifest.generated_at
    text = f"{config_hash} in {remote}, {format_size(size)}, built {format_age(age_s)} ago: pulled"
    checks.ok(name, text, config_hash=config_hash, num_bytes=size, age_s=age_s)
    return True
