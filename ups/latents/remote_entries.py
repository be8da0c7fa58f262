"""What lies in the shared cache, and what of it nobody can read any more."""

from __future__ import annotations

import logging
import time
from collections import defaultdict

from ups.background import at_once
from ups.config import Model
from ups.data.folder import Listed
from ups.errors import CacheDamaged
from ups.latents.entries import CONFIG_HASH, describe
from ups.latents.remote import Remote
from ups.latents.store import GENERATION, MANIFEST_NAME, Manifest

log = logging.getLogger(__name__)

ASKED_AT_ONCE = 16


class RemoteEntry(Model):
    """One generation of an entry there.

    Attributes:
        state: `complete`; `damaged`, where the sizes are not those of the manifest, or it cannot
            be read; `partial`, a push that goes on or was cut short: no manifest.
        current: whether it is the one that is pulled; None where the pointer cannot be read.
        changed_at: when the last of its objects was written, Unix time.
    """

    config_hash: str
    generation: str
    state: str
    current: bool | None
    summary: str
    num_bytes: int
    changed_at: float


def remote_entries(remote: Remote) -> list[RemoteEntry]:
    """Every generation there, the newest first.

    Raises:
        ObjectUnavailable, FetchError: see `Folder`.
    """
    found: dict[tuple[str, str], dict[str, Listed]] = defaultdict(dict)
    for name, listed in remote.folder.listed().items():
        key, _, rest = name.partition("/")
        generation, _, file = rest.partition("/")
        if CONFIG_HASH.fullmatch(key) and GENERATION.fullmatch(generation) and file:
            found[key, generation][file] = listed
    keys = list(dict.fromkeys(key for key, _ in found))
    what = "the shared cache"
    pointers = at_once(lambda key: _pointer(remote, key), keys, ASKED_AT_ONCE, None, what)
    current = dict(zip(keys, pointers, strict=True))

    def look(place: tuple[str, str]) -> RemoteEntry:
        key, generation = place
        files, named = found[place], current[key]
        state, summary = _look(remote, key, generation, files)
        return RemoteEntry(
            config_hash=key,
            generation=generation,
            state=state,
            current=None if named is None else named == generation,
            summary=summary,
            num_bytes=sum(file.num_bytes for file in files.values()),
            changed_at=max(file.changed_at.timestamp() for file in files.values()),
        )

    entries = at_once(look, list(found), ASKED_AT_ONCE, None, what)
    return sorted(entries, key=lambda entry: entry.changed_at, reverse=True)


def _pointer(remote: Remote, key: str) -> str | None:
    """What the pointer names; None where it cannot be read."""
    try:
        return remote.generation(key)
    except CacheDamaged as damage:
        log.warning("%s", damage)
        return None


def _look(remote: Remote, key: str, generation: str, files: dict[str, Listed]) -> tuple[str, str]:
    """The state of a generation, and what it is of."""
    if MANIFEST_NAME not in files:
        return "partial", "no manifest yet"
    try:
        manifest: Manifest = remote.manifest(key, generation)
    except CacheDamaged as damage:
        return "damaged", str(damage)
    are_whole = all(
        file.name in files and files[file.name].num_bytes == file.data_offset + file.num_bytes
        for file in manifest.files
    )
    return "complete" if are_whole else "damaged", describe(manifest.key_fields, manifest.files)


def prune_remote(
    remote: Remote, older_than_s: float, *, dry_run: bool = False
) -> list[RemoteEntry]:
    """Remove generations that no pointer names; those that were removed.

    What was written of late stays: whoever pushes it points to it in the end. So does what belongs
    to a pointer that cannot be read.

    Raises:
        ObjectUnavailable, FetchError: see `Folder`.
    """
    gone, now = [], time.time()
    for entry in remote_entries(remote):
        if entry.current is not False or now - entry.changed_at <= older_than_s:
            continue
        if not dry_run:
            # Once more: somebody may have pointed to it since.
            if _pointer(remote, entry.config_hash) in (None, entry.generation):
                continue
            below = f"{entry.config_hash}/{entry.generation}/"
            names = sorted(remote.folder.listed(below), key=lambda n: not n.endswith(MANIFEST_NAME))
            remote.folder.remove(names)  # the manifest first: nobody takes the rest for whole
        gone.append(entry)
    return gone
