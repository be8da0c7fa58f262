"""The cache on disk: safetensors files, a manifest with chunk checksums, a pointer, locks.

<latent_cache_dir>/<config hash>/
    CURRENT                      the generation that readers use, and a checksum of its name;
                                 replaced atomically
    .lock                        flock: one builder at a time
    <generation>/
        .cache_metadata.json     the manifest, sealed
        .in_use                  flock, shared: held by readers, so that nothing is deleted;
                                 its time is the last use
        train_000.safetensors    one tensor `latents` (N, T, K, D) per source
    building-<generation>/       private to the builder, resumed after a kill
    damaged-<generation>/        set aside: read by nobody, the newest is kept to be looked at
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xxhash

from ups.config import Model, RunConfig, Split
from ups.errors import CacheDamaged, CacheError
from ups.files import exclusive_lock, open_lock_file, seal, try_lock, unseal, write_atomically
from ups.latents.key import explain_difference, hash_fields
from ups.latents.latent_file import ITEM_BYTES, LatentFile, check_stamp, verify_file

log = logging.getLogger(__name__)

MANIFEST_NAME = ".cache_metadata.json"
POINTER_NAME = "CURRENT"
LOCK_NAME = ".lock"
IN_USE_NAME = ".in_use"
BUILDING = "building-"
DAMAGED = "damaged-"
GENERATION = re.compile(r"\d{8}T\d{6}-[0-9a-f]{6}")
HOLD_ATTEMPTS = 3
HOLD_PAUSE_S = 0.01
NUM_COMPARED = 100  # entries that a miss is compared with: each is a file to read


class Manifest(Model):
    """What a generation holds; written last, so that its presence means complete.

    Attributes:
        fetches: what brought the bytes that it was made of, where that is known.
    """

    config_hash: str
    key_fields: dict[str, Any]
    generation: str
    generated_at: float
    encoder: dict[str, Any]
    files: tuple[LatentFile, ...]
    fetches: tuple[str, ...] = ()

    @property
    def num_bytes(self) -> int:
        return sum(file.num_bytes for file in self.files)

    def of_split(self, split: Split) -> list[LatentFile]:
        return [file for file in self.files if file.split == split]


def new_generation() -> str:
    """A name for one, which sorts by time."""
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"


def entry_dir(cache_dir: Path, config_hash: str) -> Path:
    return cache_dir / config_hash


def generation_dir(cache_dir: Path, manifest: Manifest) -> Path:
    return entry_dir(cache_dir, manifest.config_hash) / manifest.generation


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a generation.

    Raises:
        CacheDamaged: there is no manifest, or it is not what was written.
    """
    path = directory / MANIFEST_NAME
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise CacheDamaged(f"{path}: no manifest") from error
    except OSError as error:
        raise CacheDamaged(f"{path}: unreadable manifest ({error})") from error
    return parse_manifest(path, content)


def parse_manifest(where: object, content: bytes) -> Manifest:
    """The manifest that was sealed.

    Raises:
        CacheDamaged: it is not what was written.
    """
    try:
        return Manifest.model_validate_json(unseal(content))
    except ValueError as error:
        reason = str(error).partition("\n")[0]
        raise CacheDamaged(f"{where}: unreadable manifest ({reason})") from error


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write the manifest of a generation, sealed; on the disk when this returns."""
    text = manifest.model_dump_json(indent=1)
    write_atomically(directory / MANIFEST_NAME, seal(text.encode()))


def open_current(cache_dir: Path, config_hash: str) -> Manifest:
    """The manifest of an entry that readers may use.

    Sizes must agree; where a file was touched since it was written, its checksums must, too.

    Raises:
        CacheError: there is no such entry.
        CacheDamaged: what there is cannot be used; the message says why.
    """
    entry = entry_dir(cache_dir, config_hash)
    generation = read_pointer(entry)
    if not generation:
        raise CacheError(f"no cache entry {config_hash} in {cache_dir}")
    directory = entry / generation
    manifest = read_manifest(directory)
    found = manifest.config_hash, manifest.generation, hash_fields(manifest.key_fields)
    if found != (config_hash, generation, config_hash):
        raise CacheDamaged(
            f"{directory / MANIFEST_NAME}: found the manifest of {found[0]}/{found[1]}, whose key "
            f"fields give {found[2]}; expected {config_hash}/{generation}"
        )
    for file in manifest.files:
        check_stamp(directory / file.name, file)
    return manifest


def check_cache_valid(cache_dir: Path, config_hash: str) -> bool:
    """Whether the entry of this hash is complete and unchanged; logs its age, or what is wrong."""
    try:
        open_valid(cache_dir, config_hash)
    except CacheError as error:
        log.info("cache not valid: %s", error)
        return False
    return True


def open_valid(cache_dir: Path, config_hash: str) -> Manifest:
    """`open_current`, and a line in the log that says how old the entry is.

    Raises:
        CacheError, CacheDamaged: see `open_current`.
    """
    manifest = open_current(cache_dir, config_hash)
    age_h = (time.time() - manifest.generated_at) / 3600
    log.info("cache valid (hash=%s, age=%.1f h)", config_hash, age_h)
    return manifest


def open_or_set_aside(cache_dir: Path, config_hash: str) -> Manifest | None:
    """The manifest of a valid entry; what is damaged is set aside, which is said.

    The caller holds the entry's lock.
    """
    try:
        return open_valid(cache_dir, config_hash)
    except CacheDamaged as damage:
        aside = set_aside(entry_dir(cache_dir, config_hash))
        log.warning("%s; moved to %s; building it anew", damage, aside or "nowhere")
    except CacheError as error:
        log.info("cache not valid: %s", error)
    return None


def valid_generation(cache_dir: Path, config_hash: str) -> str | None:
    """The generation that readers use; None where there is no valid one."""
    try:
        return open_current(cache_dir, config_hash).generation
    except CacheError:
        return None


def estimate_cache_size_mb(config: RunConfig, num_samples: int, num_frames: int = 201) -> float:
    """Size of the latents of `num_samples` trajectories as stored, in MB."""
    values = num_frames * config.latent.tokens * config.latent.dim
    return num_samples * values * ITEM_BYTES[config.training.latent_cache_dtype] / 1e6


def publish(cache_dir: Path, manifest: Manifest) -> None:
    """Make a generation the one that readers use, and drop older ones that nobody reads.

    Of those that were set aside the newest stays.
    """
    entry, name = entry_dir(cache_dir, manifest.config_hash), manifest.generation
    write_atomically(entry / POINTER_NAME, pointer_to(name))
    damaged = entry.glob(f"{DAMAGED}*")
    last_damaged = max(damaged, key=lambda path: path.stat().st_ctime_ns, default=None)
    for old in entry.iterdir():
        if old.is_dir() and old.name != name and old != last_damaged:
            remove_unused(old)


def quarantine(cache_dir: Path, config_hash: str) -> Path | None:
    """Take the entry's generation out of use if it is damaged; it stays beside, to be looked at.

    Returns: where it is now; None where meanwhile all is well, or nothing is there.
    """
    entry = entry_dir(cache_dir, config_hash)
    with exclusive_lock(entry / LOCK_NAME):
        generation = current_generation(entry)
        try:
            for file in read_manifest(entry / generation).files:
                verify_file(entry / generation / file.name, file)
        except CacheError as error:
            log.info("%s", error)
        else:
            return None
        return set_aside(entry)


def set_aside(entry: Path) -> Path | None:
    """Take what the pointer names out of use. The caller holds the entry's lock.

    Returns: where that generation is now; None where there is none, or the pointer is damaged.
    """
    generation = current_generation(entry)
    (entry / POINTER_NAME).unlink(missing_ok=True)
    if not generation or not (entry / generation).is_dir():
        return None
    return (entry / generation).rename(entry / f"{DAMAGED}{generation}")


def hold_current(cache_dir: Path, config_hash: str) -> tuple[Manifest, InUse]:
    """The current generation, held so that nobody removes it, and marked as used now.

    Raises:
        CacheError: see `open_current`.
    """
    for _ in range(HOLD_ATTEMPTS):
        manifest = open_current(cache_dir, config_hash)
        directory = generation_dir(cache_dir, manifest)
        try:
            hold = InUse(directory)
        except (CacheError, FileNotFoundError):
            time.sleep(HOLD_PAUSE_S)  # it is being removed, or looked at for a moment
            continue
        if current_generation(directory.parent) == manifest.generation:
            mark_used(directory)
            return manifest, hold
        hold.close()
    raise CacheError(
        f"the entry {config_hash} in {cache_dir} is replaced again and again: run again later"
    )


def current_generation(entry: Path) -> str:
    """What the pointer names; empty where there is none, or it is damaged."""
    try:
        return read_pointer(entry)
    except CacheDamaged:
        return ""


def read_pointer(entry: Path) -> str:
    """What the pointer names; empty without one.

    Raises:
        CacheDamaged: it is not what was written.
    """
    path = entry / POINTER_NAME
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return ""
    return parse_pointer(path, content)


def pointer_to(generation: str) -> bytes:
    """What a pointer holds: a generation, and a checksum of its name."""
    return f"{generation} {xxhash.xxh3_64_hexdigest(generation.encode())}\n".encode()


def parse_pointer(where: object, content: bytes) -> str:
    """The generation that a pointer names.

    Raises:
        CacheDamaged: it is not what was written.
    """
    text = content.decode(errors="replace")
    name, *check = text.split() or [""]  # an earlier version wrote no checksum
    is_name = GENERATION.fullmatch(name)
    if not is_name or check not in ([], [xxhash.xxh3_64_hexdigest(name.encode())]):
        raise CacheDamaged(f"{where}: found {text[:80]!r}, expected a generation and its checksum")
    return name


class InUse:
    """A shared lock on a generation, which keeps `remove_unused` away while it is open."""

    def __init__(self, directory: Path) -> None:
        self._fd = open_lock_file(directory / IN_USE_NAME, os.O_RDWR | os.O_CREAT)
        if not try_lock(self._fd, shared=True):
            self.close()
            raise CacheError(f"{directory} is being removed: run again, to build it anew")

    def close(self) -> None:
        os.close(self._fd)


def mark_used(directory: Path) -> None:
    """Note that a generation is used now; where that cannot be written, the use goes unnoted."""
    try:
        os.utime(directory / IN_USE_NAME)
    except OSError as error:
        log.debug("the last use of %s is not noted: %s", directory, error)


def remove_unused(directory: Path) -> bool:
    """Delete a generation unless somebody reads it; the pointer to it goes first.

    The caller holds the entry's lock.
    """
    try:
        fd = os.open(directory / IN_USE_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except FileNotFoundError:
        return False
    try:
        if not try_lock(fd):
            log.info("%s is in use and stays", directory)
            return False
        if current_generation(directory.parent) == directory.name:
            (directory.parent / POINTER_NAME).unlink()
        shutil.rmtree(directory)
        return True
    finally:
        os.close(fd)


def remove_empty(entry: Path) -> None:
    """Remove an entry without a generation, whose lock is held."""
    with contextlib.suppress(OSError):  # somebody has begun a build
        (entry / LOCK_NAME).unlink()
        entry.rmdir()


def drop_partial_builds(entry: Path) -> None:
    """Remove what builds of this entry have begun; the caller holds its lock."""
    for directory in entry.glob(f"{BUILDING}*"):
        shutil.rmtree(directory)


def explain_miss(cache_dir: Path, fields: dict[str, Any]) -> list[str]:
    """How the nearest entry of the same equation differs from what is wanted; empty without any.

    Of a large cache only the newest entries are looked at: a build waits for this.
    """
    differences = [
        explain_difference(fields, manifest.key_fields)
        for manifest in list_entries(cache_dir, NUM_COMPARED)
        if manifest.key_fields.get("task") == fields["task"]
    ]
    return min((d for d in differences if d), key=len, default=[])


def list_entries(cache_dir: Path, newest: int | None = None) -> Iterator[Manifest]:
    """The manifests of the entries that are complete, newest last: of all, or of so many."""
    pointers = sorted(cache_dir.glob(f"*/{POINTER_NAME}"), key=_modified_ns)
    for pointer in pointers if newest is None else pointers[-newest:]:
        generation = current_generation(pointer.parent)
        if not generation:  # removed meanwhile
            continue
        try:
            yield read_manifest(pointer.parent / generation)
        except CacheError as error:
            log.warning("%s", error)


def _modified_ns(path: Path) -> int:
    """0 where the file is gone."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
