"""Choose and delete cache entries, never one that is being read or built.

`remove` takes the locks of readers and builders without waiting, so there is no moment between a
look and a removal in which a job could start to read.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from ups.config import Model, ProblemConfig
from ups.errors import CacheError
from ups.files import lock_now
from ups.latents import store
from ups.latents.entries import Entry, State, entries
from ups.latents.store import LOCK_NAME
from ups.units import format_age, format_size

log = logging.getLogger(__name__)

WHAT: dict[State, str] = {
    "complete": "least recently used",
    "partial": "abandoned build",
    "damaged": "damaged",
    "orphaned": "orphaned",
}


class Removal(Model):
    """An entry that is to go, and why."""

    entry: Entry
    reason: str


def plan_prune(
    found: Sequence[Entry],
    max_bytes: int | None = None,
    older_than_s: float | None = None,
    *,
    sweep: bool = True,
    keep: Collection[str] = (),
) -> list[Removal]:
    """What goes, in this order: what no run can read, then entries by least recent use.

    Args:
        max_bytes: entries go until the rest is not larger; those that stay in any case count, too.
        older_than_s: entries go that were not used for longer.
        sweep: damaged, orphaned and abandoned partial ones go in any case.
        keep: generations that stay.
    """
    now, left = time.time(), sum(entry.num_bytes for entry in found)
    free = [e for e in found if not e.in_use and e.generation not in keep]
    going = []
    for entry in sorted(free, key=lambda e: (e.state == "complete", e.last_used_at)):
        unused_s = now - entry.last_used_at
        what = WHAT[entry.state]
        if sweep and entry.state != "complete":
            reason = what
        elif older_than_s is not None and unused_s > older_than_s:
            reason = f"not used for {format_age(unused_s)}"
        elif max_bytes is not None and left > max_bytes:
            reason = f"{what}, over {format_size(max_bytes)}"
        else:
            continue
        left -= entry.num_bytes
        going.append(Removal(entry=entry, reason=reason))
    return going


def keep_budget(cache_dir: Path, max_bytes: int, keep: Collection[str]) -> None:
    """Prune to a size without removing the generations `keep`; one line says what went and why."""
    found = entries(cache_dir)
    before = sum(entry.num_bytes for entry in found)
    if before <= max_bytes:
        return
    gone = []
    for removal in plan_prune(found, max_bytes, sweep=False, keep=keep):
        try:
            if remove(removal.entry):
                gone.append(removal.entry)
        except CacheError as error:
            log.warning("%s", error)
    after, now = before - sum(entry.num_bytes for entry in gone), time.time()
    names = [
        f"{e.config_hash} ({e.state}, {format_size(e.num_bytes)}, "
        f"not used for {format_age(now - e.last_used_at)})"
        for e in gone
    ]
    too_much = after > max_bytes
    message = (
        f"{cache_dir} held {format_size(before)}, training.latent_cache_max_gb allows "
        f"{format_size(max_bytes)}: removed {', '.join(names) or 'nothing'}; "
        f"{format_size(after)} stay"
    )
    if too_much:
        log.warning("%s, which are in use or just built", message)
    else:
        log.info("%s", message)


def keep_to_budget(config: ProblemConfig, keep: Collection[str]) -> None:
    """Remove what the cache's budget has no room for, but not these generations."""
    if config.training.latent_cache_max_gb is not None:
        max_bytes = int(config.training.latent_cache_max_gb * 1e9)
        keep_budget(config.training.latent_cache_dir, max_bytes, keep=set(keep))


def remove(entry: Entry) -> bool:
    """Delete a generation unless somebody reads it, or builds or checks the entry at this moment.

    Returns: whether it was deleted.
    Raises:
        CacheError: the operating system refused.
    """
    entry_dir = entry.directory.parent
    try:
        lock = lock_now(entry_dir / LOCK_NAME)
        if lock is None:
            log.info("%s is being built or checked and stays", entry.directory)
            return False
        try:
            removed = store.remove_unused(entry.directory)
            if not any(path.is_dir() for path in entry_dir.iterdir()):
                for file in entry_dir.iterdir():
                    file.unlink()
                with contextlib.suppress(OSError):  # somebody who waits for the lock made a new one
                    entry_dir.rmdir()
        finally:
            os.close(lock)
    except OSError as error:
        raise CacheError(
            f"{entry.directory} cannot be removed: {error}; see who owns the cache directory"
        ) from error
    return removed
