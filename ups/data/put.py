"""Put files into the store and get them back: several at once, compared, none sent twice."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ups.background import at_once
from ups.config import Model
from ups.data.blocks import describe_file
from ups.data.manifest_notes import FOLDER as NOTES
from ups.data.objectstore import ObjectInfo, ObjectStore
from ups.data.s3errors import StoreRefuses, answer
from ups.data.stamps import hash_file, read_stamp
from ups.data.transfer import Download, download
from ups.data.uri import Address
from ups.errors import ConfigError, DataError, ObjectUnavailable
from ups.progress import Progress

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
FILES_AT_ONCE = 4
THREADS_OF_SEVERAL = 2  # that fetch each of several files
ASKED_AT_ONCE = 16
RECORD_EVERY_S = 10.0  # seconds: what is sent and not recorded is sent again after a kill

Plan = Mapping[str, Path]
"""Key → the file that goes there, or comes from there."""


class Sent(Model):
    """What became of one file.

    Attributes:
        was_there: the store had it already, and nothing was sent.
        resumed_bytes: that the store had of it, from an upload that was cut short.
    """

    uri: str
    path: Path
    sha256: str
    num_bytes: int
    was_there: bool
    resumed_bytes: int = 0


def plan_put(places: Sequence[str], target: Address) -> dict[str, Path]:
    """Which file goes to which key; of a folder all files below it, but hidden ones.

    Raises:
        DataError: there is no such file. ConfigError: two would have one key, or one is a manifest.
    """
    found: dict[str, Path] = {}
    for place in map(Path, places):
        if place.is_dir():
            below = [p for p in sorted(place.rglob("*")) if p.is_file() and not _hidden(place, p)]
            named = [(path.relative_to(place).as_posix(), path) for path in below]
        elif place.is_file():
            named = [(place.name, place)]
        else:
            raise DataError(f"{place}: no such file or folder; correct the path")
        for name, path in named:
            key = f"{target.key}{name}" if target.is_folder else target.key
            if key in found:
                reason = f"{found[key]} and {path} would both be s3://{target.bucket}/{key}"
                raise ConfigError(f"{reason}: put them into folders of their own, DIR/ in the end")
            if name.rpartition("/")[2] == MANIFEST:
                raise ConfigError(f"{path}: {MANIFEST} is what this writes itself: leave it out")
            found[key] = path
    if not found:
        raise DataError(f"found no file in {', '.join(places)}, expected some to upload")
    return found


def _hidden(folder: Path, path: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def put(
    store: ObjectStore,
    bucket: str,
    plan: Plan,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> list[Sent]:
    """Have these files in the store, and their digests in the manifests beside them.

    Args:
        overwrite: replace objects that hold something else; else nothing at all is sent.
        progress: takes bytes done and in all.
    Raises:
        ConfigError: there is another object at one of the keys.
        ObjectUnavailable, FetchError, DataError, Interrupted: see `ObjectStore.send`; what has been
            sent until then is recorded.
    """
    there = _existing(store, bucket, plan)
    digests = at_once(describe_file, [plan[key] for key in there], FILES_AT_ONCE, stop, "a digest")
    known = dict(zip(there, digests, strict=True))
    same = {key for key, info in there.items() if _is_same(info, known[key], plan[key])}
    others = [key for key in there if key not in same]
    if others and not overwrite:
        first = there[others[0]]
        what = "another SHA-256" if first.sha256 else "no SHA-256 in a manifest to compare with"
        more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
        raise ConfigError(
            f"{first.uri} is there already, {first.num_bytes} bytes with {what}{more}: take "
            "another name, or give --force to replace it; nothing was sent"
        )
    told = _Told(progress, sum(path.stat().st_size for path in plan.values()))
    recorder = _Recorder(store, bucket)

    def send(key: str) -> Sent:
        path, resumed = plan[key], 0
        entry = known.get(key) or describe_file(path)
        if key not in same:
            resumed = store.send(path, bucket, key, told.of(key), stop)
        if key not in same or there[key].sha256 is None:
            recorder.add(key, entry)
        told.of(key)(entry["bytes"], entry["bytes"])
        return Sent(
            uri=f"s3://{bucket}/{key}",
            path=path,
            sha256=entry["sha256"],
            num_bytes=entry["bytes"],
            was_there=key in same,
            resumed_bytes=resumed,
        )

    try:
        return at_once(send, list(plan), FILES_AT_ONCE, stop, "the object store")
    finally:
        recorder.flush()


def _existing(store: ObjectStore, bucket: str, plan: Plan) -> dict[str, ObjectInfo]:
    """The objects that are at these keys already."""
    keys = list(plan)
    try:
        listed = store.below(bucket, _common_folder(keys))
        keys = [key for key in keys if key in listed]
    except StoreRefuses:
        raise
    except ObjectUnavailable as error:
        _, status = answer(error.__cause__)
        if status == 404:  # there is no such bucket
            return {}
        if status != 403:
            raise
        log.info("s3://%s may not be listed: each key is asked about", bucket)
        are_there = at_once(
            lambda key: store.exists(bucket, key), keys, ASKED_AT_ONCE, None, "the object store"
        )
        keys = [key for key, is_there in zip(keys, are_there, strict=True) if is_there]
    found = at_once(
        lambda key: store.head(bucket, key), keys, ASKED_AT_ONCE, None, "the object store"
    )
    return dict(zip(keys, found, strict=True))


def _common_folder(keys: Sequence[str]) -> str:
    prefix = os.path.commonprefix(keys)  # noqa: RUF071 (an S3 prefix may end within a name)
    return prefix if len(keys) == 1 else prefix[: prefix.rfind("/") + 1]


def _is_same(info: ObjectInfo, entry: Mapping[str, Any], path: Path) -> bool:
    """Whether the object is the file, as far as a digest tells."""
    if info.num_bytes != entry["bytes"]:
        return False
    if info.sha256 is not None:
        return bool(info.sha256 == entry["sha256"])
    if info.md5 is None:
        return False
    with path.open("rb") as file:
        return info.md5 == hashlib.file_digest(file, "md5").hexdigest()


class _Told:
    """Adds up how far several files are."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total = progress, total
        self._done: dict[str, int] = {}
        self._lock = threading.Lock()

    def of(self, key: str) -> Progress:
        """What takes how far one of them is."""

        def told(done: int, _total: int) -> None:
            with self._lock:
                self._done[key] = done
                if self._progress is not None:
                    self._progress(min(sum(self._done.values()), self._total), self._total)

        return told


class _Recorder:
    """Takes entries for the manifests, and writes them now and then: not once for each object."""

    def __init__(self, store: ObjectStore, bucket: str) -> None:
        self._store, self._bucket = store, bucket
        self._entries: dict[str, dict[str, Any]] = {}
        self._lock, self._at = threading.Lock(), time.monotonic()

    def add(self, key: str, entry: dict[str, Any]) -> None:
        """What is sent of late is recorded with it, where that is due."""
        with self._lock:
            self._entries[key] = entry
            if time.monotonic() - self._at < RECORD_EVERY_S:
                return
            entries, self._entries, self._at = self._entries, {}, time.monotonic()
        self._store.record(self._bucket, entries)

    def flush(self) -> None:
        """Record what is left."""
        with self._lock:
            entries, self._entries = self._entries, {}
        if entries:
            self._store.record(self._bucket, entries)


def plan_get(store: ObjectStore, source: Address, target: Path) -> dict[str, Path]:
    """Which object comes to which file; of a folder all objects below it, but manifests.

    Raises:
        DataError: there are none, or a key leads out of the folder.
        ObjectUnavailable, FetchError: the folder cannot be listed.
    """
    if not source.is_folder:
        return {source.key: target / source.name if target.is_dir() else target}
    names = [key[len(source.key) :] for key in store.below(source.bucket, source.key)]
    names = [name for name in names if not _is_ours(name) and not name.endswith("/")]
    if not names:
        raise DataError(f"{source}: found no objects, expected some to fetch; correct the folder")
    for name in names:
        if name.startswith("/") or ".." in name.split("/"):
            raise DataError(f"{source}{name}: its key leads out of {target}: fetch it by its own")
    return {f"{source.key}{name}": target / name for name in names}


def _is_ours(name: str) -> bool:
    return f"/{name}".endswith(f"/{MANIFEST}") or f"/{MANIFEST}{NOTES}" in f"/{name}"


def get(
    store: ObjectStore,
    bucket: str,
    plan: Plan,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> list[Download]:
    """Have these objects in these files, whole and compared; a cut download goes on.

    Args:
        overwrite: replace files of another content that no download put there.
        progress: takes bytes done and in all.
    Raises:
        ConfigError: such a file is there; nothing is fetched then.
        ObjectUnavailable, FetchError, DiskFull, Interrupted: see `download`.
    """
    keys = list(plan)
    infos = dict(
        zip(
            keys,
            at_once(
                lambda key: store.head(bucket, key), keys, ASKED_AT_ONCE, stop, "the object store"
            ),
            strict=True,
        )
    )
    if not overwrite:
        for key, path in plan.items():
            if path.exists() and read_stamp(path) is None and not _is_file(infos[key], path):
                raise ConfigError(
                    f"{path} is there already, and is not {infos[key].uri}: take another folder, "
                    "or give --force to replace it; nothing was fetched"
                )
    told = _Told(progress, sum(info.num_bytes for info in infos.values()))

    def fetch(key: str) -> Download:
        threads = None if len(plan) == 1 else THREADS_OF_SEVERAL
        return download(
            store, bucket, key, plan[key], num_threads=threads, stop=stop, progress=told.of(key)
        )

    return at_once(fetch, keys, FILES_AT_ONCE, stop, "the object store")


def _is_file(info: ObjectInfo, path: Path) -> bool:
    return path.stat().st_size == info.num_bytes and hash_file(path) == info.sha256
