"""Latents that machines share: entries of the cache in a bucket, the same files as on disk.

<cache.remote>/latents/<config hash>/
    CURRENT                      the generation that is pulled, as on disk; written last
    <generation>/
        .cache_metadata.json     the manifest, sealed; written after the files
        train_000.safetensors    …

A generation is immutable: nobody writes to one that is whole. Whoever builds the same entry at the
same time leaves one of his own, and the pointer names one of them. What is read is compared with
the manifest's checksums, so nothing depends on the store's conditions, or on who was faster.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from typing import TYPE_CHECKING

from ups.config import RunConfig
from ups.data.s3errors import Retry, answer, describe
from ups.errors import CacheDamaged
from ups.latents.key import ENCODED_SPLITS, hash_fields
from ups.latents.store import (
    MANIFEST_NAME,
    POINTER_NAME,
    Manifest,
    parse_manifest,
    parse_pointer,
    pointer_to,
)

if TYPE_CHECKING:
    from ups.data.folder import Folder
    from ups.data.objectstore import ObjectStore

LATENTS = "latents/"
RETRY = Retry(attempts=3, lasting_s=8.0)  # the raw data are there, too
PLAIN = re.compile(r"[A-Za-z0-9_]+\.safetensors")


class Remote:
    """The entries below `cache.remote`. Safe to share between threads.

    Use: `opened`, which makes a client where the run has none; `close` in the end.

    Raises:
        ObjectUnavailable, FetchError: of every method, see `Folder`.
    """

    def __init__(self, folder: Folder, on_close: ExitStack | None = None) -> None:
        self.folder, self._on_close = folder, on_close or ExitStack()

    @classmethod
    def opened(cls, config: RunConfig, store: ObjectStore | None = None) -> Remote:
        """The one that the config names.

        Args:
            store: of the run; None: a client of its own.
        Raises:
            ConfigError, ObjectUnavailable: see `ObjectStore`.
        """
        assert config.cache.remote is not None, "there is none without cache.remote"
        on_close = ExitStack()
        if store is None:
            from ups.data.objectstore import ObjectStore

            store = ObjectStore(config.data.endpoint_url)
            on_close.callback(store.close)
        bucket, _, prefix = config.cache.remote.removeprefix("s3://").partition("/")
        prefix = f"{prefix.rstrip('/')}/" if prefix else ""
        return cls(store.folder(bucket, f"{prefix}{LATENTS}", RETRY), on_close)

    def close(self) -> None:
        """Close the client, where it is our own."""
        self._on_close.close()

    @property
    def uri(self) -> str:
        """Where the entries lie."""
        return self.folder.uri()

    def generation(self, key: str) -> str:
        """What the pointer of an entry names; empty without one.

        Raises:
            CacheDamaged: it is not what was written.
        """
        name = f"{key}/{POINTER_NAME}"
        content = self.folder.get(name)
        return "" if content is None else parse_pointer(self.folder.uri(name), content)

    def manifest(self, key: str, generation: str) -> Manifest:
        """The manifest of a generation.

        Raises:
            CacheDamaged: it is not there, or not that of this generation.
        """
        name = f"{key}/{generation}/{MANIFEST_NAME}"
        uri, content = self.folder.uri(name), self.folder.get(name)
        if content is None:
            raise CacheDamaged(f"{uri}: no manifest, which {POINTER_NAME} names")
        manifest = parse_manifest(uri, content)
        found = manifest.config_hash, manifest.generation, hash_fields(manifest.key_fields)
        if found != (key, generation, key):
            raise CacheDamaged(f"{uri}: found the manifest of {found[0]}/{found[1]}")
        try:
            _check_files(uri, manifest)
        except (LookupError, TypeError) as error:
            raise CacheDamaged(f"{uri}: its key fields are not those of an entry") from error
        return manifest

    def point_to(self, manifest: Manifest, *, if_absent: bool) -> bool:
        """Have readers use a generation; False where `if_absent` found another pointer."""
        name = f"{manifest.config_hash}/{POINTER_NAME}"
        return self.folder.put(name, pointer_to(manifest.generation), if_absent=if_absent)

    def find(self, key: str) -> Manifest | None:
        """The manifest of an entry; None where there is none, after one round trip.

        Raises:
            CacheDamaged: see `generation` and `manifest`.
        """
        generation = self.generation(key)
        return self.manifest(key, generation) if generation else None


def reason_of(error: BaseException) -> str:
    """An error of a store, or of what it holds, in one line."""
    cause = error.__cause__
    if isinstance(cause, Exception) and answer(cause)[1]:
        return describe(cause)
    return str(error).partition("\n")[0]


def _check_files(uri: str, manifest: Manifest) -> None:
    """Refuse files that no build plans: their names become names on this disk."""
    names, fields = [file.name for file in manifest.files], manifest.key_fields
    is_planned = len(set(names)) == len(names) and all(map(PLAIN.fullmatch, names))
    made_of = fields["latent"]["tokens"], fields["latent"]["dim"], fields["dtype"]
    for file in manifest.files:
        is_planned &= (*file.shape[2:], file.dtype) == made_of
        is_planned &= min(*file.shape, file.chunk_rows) > 0
        is_planned = is_planned and len(file.checksums) == file.num_chunks
    sources = fields["sources"]
    splits = [split for split in ENCODED_SPLITS for _ in sources[split]]
    if not is_planned or [file.split for file in manifest.files] != splits:
        raise CacheDamaged(f"{uri}: its files are not those of an entry")
