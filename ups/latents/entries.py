"""What lies in a cache directory, and whether it is whole."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from ups.config import Model
from ups.equations import EQUATIONS
from ups.errors import CacheDamaged, CacheError
from ups.files import is_locked
from ups.latents import journal, latent_file, store
from ups.latents.key import hash_fields
from ups.latents.latent_file import LatentFile
from ups.latents.store import BUILDING, DAMAGED, Manifest
from ups.progress import Progress

log = logging.getLogger(__name__)

CONFIG_HASH = re.compile(r"[0-9a-f]{12}")
State = Literal["complete", "partial", "damaged", "orphaned"]


class Entry(Model):
    """One generation of a cache entry.

    Attributes:
        state: `complete`; `partial`, a build that goes on or was cut short; `damaged`, files that
            are not as the manifest says, or were set aside as such, or a pointer or a journal that
            cannot be read; `orphaned`, whole but replaced.
        current: whether it is the one that a run would read.
        num_bytes: the sizes of its files, which are allocated in full from the start.
        generated_at, last_used_at: Unix times; a build that was never loaded was used when built.
        in_use: whether a process reads it, or builds this entry.
    """

    config_hash: str
    generation: str
    directory: Path
    state: State
    current: bool
    summary: str
    num_bytes: int
    generated_at: float | None
    last_used_at: float
    in_use: bool


class Damage(Model):
    """What `verify` found; without a chunk it is the file as a whole."""

    file: str
    chunk: int | None
    reason: str


def entries(cache_dir: Path) -> list[Entry]:
    """Every generation in a cache directory, the most recently used first.

    `complete` means by the sizes of the files; `verify` reads them.
    """
    found: list[Entry] = []
    for entry_dir in cache_dir.glob("*"):
        if CONFIG_HASH.fullmatch(entry_dir.name):
            try:
                found += _generations(entry_dir)
            except (FileNotFoundError, NotADirectoryError):  # removed meanwhile, or a file
                continue
            except PermissionError as error:
                log.warning("%s is left out: %s", entry_dir, error)
    return sorted(found, key=lambda entry: entry.last_used_at, reverse=True)


class Keyed(Protocol):
    """What has a cache key."""

    @property
    def config_hash(self) -> str: ...


def match_key(found: Sequence[Keyed], prefix: str) -> str:
    """The config hash that starts with `prefix`; an empty one, as of an unset variable, is none's.

    Raises:
        CacheError: there is none, or more than one.
    """
    known = sorted({entry.config_hash for entry in found})
    matching = [key for key in known if prefix and key.startswith(prefix)]
    if not matching:
        raise CacheError(f"no cache entry {prefix!r}: there are {', '.join(known) or 'none'}")
    if len(matching) > 1:
        raise CacheError(f"{prefix!r} is the beginning of {', '.join(matching)}: give more of it")
    return matching[0]


def verify(entry: Entry, progress: Progress = lambda _done, _all: None) -> list[Damage]:
    """Read an entry and compare every chunk with its checksum; nobody removes it meanwhile.

    Args:
        progress: called with bytes read and in all.
    Raises:
        CacheError: there is nothing to verify: a partial build, or it is being removed.
    """
    if entry.state == "partial":
        raise CacheError(f"{entry.config_hash} is a partial build: there is nothing to verify yet")
    try:
        hold = store.InUse(entry.directory)
    except FileNotFoundError as error:
        raise CacheError(
            f"{entry.directory} is gone: see `ups cache list` for the others"
        ) from error
    with contextlib.closing(hold):
        try:
            manifest = store.read_manifest(entry.directory)
        except CacheError as error:
            return [Damage(file=store.MANIFEST_NAME, chunk=None, reason=str(error))]
        return list(_damage(entry, manifest, progress))


def _damage(entry: Entry, manifest: Manifest, progress: Progress) -> Iterator[Damage]:
    if hash_fields(manifest.key_fields) != entry.config_hash:
        reason = f"its key fields are not those of {entry.config_hash}"
        yield Damage(file=store.MANIFEST_NAME, chunk=None, reason=reason)
    done = 0
    for file in manifest.files:
        path, before = entry.directory / file.name, done
        try:
            for chunk, found in enumerate(latent_file.read_checksums(path, file)):
                try:
                    latent_file.check_chunk(path, chunk, found, file.checksums[chunk])
                except CacheDamaged as error:
                    yield Damage(file=file.name, chunk=chunk, reason=str(error))
                done += len(file.chunk(chunk)) * file.row_bytes
                progress(done, manifest.num_bytes)
        except (CacheDamaged, OSError) as error:
            yield Damage(file=file.name, chunk=None, reason=str(error))
        done = before + file.num_bytes


def _generations(entry_dir: Path) -> Iterator[Entry]:
    locked = is_locked(entry_dir / store.LOCK_NAME)
    pointed = store.current_generation(entry_dir)
    names_none = not (pointed and (entry_dir / pointed).is_dir())
    is_lost = names_none and (entry_dir / store.POINTER_NAME).exists()
    if store.current_generation(entry_dir) != pointed:  # replaced meanwhile: it was right before
        is_lost = False
    for directory in entry_dir.iterdir():
        if directory.is_dir():
            with contextlib.suppress(FileNotFoundError):
                is_current = directory.name == pointed
                yield _look(directory, current=is_current, locked=locked, is_lost=is_lost)


def _look(directory: Path, *, current: bool, locked: bool, is_lost: bool) -> Entry:
    """One generation as it is now.

    Args:
        is_lost: whether the pointer names no generation that is there.
    Raises:
        FileNotFoundError: it was removed meanwhile.
    """
    manifest, summary = None, "no readable manifest"
    with contextlib.suppress(CacheError, LookupError):
        manifest = store.read_manifest(directory)
        summary = describe(manifest.key_fields, manifest.files)
    stamp, state = directory / store.IN_USE_NAME, _state(directory, manifest, current)
    if state == "partial":
        stamp, progress = directory / journal.NAME, _progress(directory)
        summary = progress or summary
        if not progress and stamp.exists() and not locked:
            state = "damaged"
    if state == "orphaned" and is_lost:
        state = "damaged"
    return Entry(
        config_hash=directory.parent.name,
        generation=directory.name.removeprefix(BUILDING).removeprefix(DAMAGED),
        directory=directory,
        state=state,
        current=current,
        summary=summary,
        num_bytes=sum(path.stat().st_size for path in directory.iterdir()),
        generated_at=manifest.generated_at if manifest else None,
        last_used_at=(stamp if stamp.exists() else directory).stat().st_mtime,
        in_use=locked or is_locked(directory / store.IN_USE_NAME),
    )


def _state(directory: Path, manifest: Manifest | None, current: bool) -> State:
    if directory.name.startswith(BUILDING):
        return "partial"
    if directory.name.startswith(DAMAGED) or manifest is None:
        return "damaged"
    for file in manifest.files:
        path = directory / file.name
        if not path.exists() or path.stat().st_size != file.data_offset + file.num_bytes:
            return "damaged"
    return "complete" if current else "orphaned"


def describe(fields: Mapping[str, Any], files: Sequence[LatentFile]) -> str:
    """`burgers1d ν 0.01, 16 tokens × 32, float16, 544 trajectories of 2 sources`."""
    tokens, dim = files[0].shape[2:]
    num = sum(file.shape[0] for file in files)
    symbol = EQUATIONS[fields["task"]].symbol
    values = dict.fromkeys(f"{v:g}" for file in files for v in file.parameters.values())
    return (
        f"{fields['task']} {symbol} {' and '.join(values)}, {tokens} tokens × {dim}, "
        f"{files[0].dtype}, {num} trajectories of {len(files)} sources"
    )


def _progress(directory: Path) -> str:
    """What a build makes and how far it is; empty where its journal cannot be read."""
    try:
        plan, noted = journal.read(directory)
        files = [LatentFile.model_validate(file) for file in plan["files"]]
        done = sum(len(files[index].chunk(chunk)) for index, chunk in noted)
        return f"{describe(plan['key_fields'], files)}, {done} of them encoded"
    except (CacheDamaged, ValueError, LookupError, TypeError) as error:
        log.debug("%s: unreadable journal: %s", directory, error)
        return ""
