"""What a run needs, by name: from the config's sources to verified files on disk."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ups.background import at_once
from ups.config import Model, ProblemConfig, RunConfig, Split
from ups.data.frames import check_frames_alike
from ups.data.web import below, uri_of
from ups.errors import DataError, WrongGrid
from ups.progress import Progress

if TYPE_CHECKING:
    from ups.data.objectstore import ObjectStore
    from ups.data.pdebench import Coming, TrajectoryFile
    from ups.data.transfer import Download

log = logging.getLogger(__name__)

PROVISIONAL = "provisional-"  # begins what stands for a SHA-256 that is not known yet
MOST_ASKED = 16  # objects that the store is asked about at once


class Wanted(Model):
    """One source before it is staged: where it comes from, and where it goes."""

    problem: str
    split: Split
    bucket: str | None
    key: str | None
    path: Path
    rows: tuple[int, int] | None

    @property
    def uri(self) -> str:
        if self.bucket is None or self.key is None:
            return str(self.path)
        return uri_of(self.bucket, self.key)

    @property
    def place(self) -> tuple[str, str]:
        """Bucket and key, of an object."""
        assert self.bucket is not None
        assert self.key is not None
        return self.bucket, self.key


class Staged(Model):
    """A source on disk whose content is known.

    Attributes:
        parameter: of its equation, where the file does not hold it; else None.
        state: what `stat` said of the file when its SHA-256 was known: size, times and inode.
        is_here: False of one that is not on disk, because its latents are in the cache.
        fetch: names the fetch that brought its bytes, see `RangedFetch.token`; "" where unknown.
    """

    split: Split
    uri: str
    path: Path
    rows: tuple[int, int] | None
    sha256: str
    num_bytes: int
    fetched_bytes: int
    seconds: float
    is_verified: bool = True  # False: no digest from the store to compare with
    parameter: float | None = None
    state: tuple[int, ...] | None = None
    is_here: bool = True
    fetch: str = ""


def as_stored(source: Wanted, sha256: str, num_bytes: int, *, is_here: bool) -> Staged:
    """A source whose content is known, of which nothing was fetched."""
    return Staged(
        split=source.split,
        uri=source.uri,
        path=source.path,
        rows=source.rows,
        sha256=sha256,
        num_bytes=num_bytes,
        fetched_bytes=0,
        seconds=0.0,
        is_here=is_here,
    )


def wanted(config: ProblemConfig, split: Split) -> list[Wanted]:
    """The sources of a split: objects where the config names them, else files under the root.

    Raises:
        DataError: a local file is not there: one that the config names, or where it names nothing.
    """
    root, data, problem = config.data_root, config.data, config.problem
    if problem.sources is None:
        from ups.data.pdebench import find_files

        return [
            Wanted(problem=problem.name, split=split, bucket=None, key=None, path=path, rows=None)
            for path in find_files(root, problem.name, split)
        ]
    found = []
    for number, source in enumerate(problem.sources[split]):
        own = {"problem": problem.name, "split": split, "rows": source.rows}
        if (path := source.path) is None:
            bucket, key = data.place_of(source)
            found.append(Wanted(bucket=bucket, key=key, path=root / below(bucket, key), **own))
        elif path.is_file():
            found.append(Wanted(bucket=None, key=None, path=path, **own))
        else:
            what = "found a folder" if path.is_dir() else "no such file"
            raise DataError(
                f"sources.{split}.{number}.path of {problem.name}: {path.absolute()}: {what}, "
                "expected an HDF5 file; correct it (what is relative is so to the folder that the "
                "run is started in)"
            )
    return found


def open_file(
    config: ProblemConfig,
    path: Path,
    rows: tuple[int, int] | None,
    coming: Coming | None = None,
    *,
    header_only: bool = False,
) -> TrajectoryFile:
    """A file of the problem of this config, or rows of it, as far as it is encoded.

    Args:
        coming: the file, where it is only on its way to `path`.
        header_only: see `TrajectoryFile`.
    Raises:
        DataError: see `TrajectoryFile`.
    """
    from ups.data.pdebench import TrajectoryFile

    try:
        return TrajectoryFile(
            path,
            rows,
            grid_points=config.data.grid_points,
            equation=config.problem.equation,
            strides=(config.encoder.t_stride, config.encoder.x_stride),
            expected_parameter=config.problem.parameter_value,
            coming=coming,
            header_only=header_only,
        )
    except WrongGrid as error:
        also = _along_with_grid(config, error.points)
        raise WrongGrid(error.what, error.points, error.expected, also) from None


def _along_with_grid(config: RunConfig, points: int) -> str:
    """What else has to change with data.grid_points, if anything has."""
    stride, encoded = config.encoder.x_stride, points // config.encoder.x_stride
    if points % stride:
        return f" and encoder.x_stride to a divisor of it (it is {stride})"
    if encoded % config.latent.tokens:
        return f" and latent.tokens to a divisor of {encoded}{config.tokens_for(encoded)}"
    return ""


def open_files(config: ProblemConfig, sources: Sequence[Staged]) -> list[TrajectoryFile]:
    """The files of staged sources; see `open_file`."""
    return [open_file(config, source.path, source.rows) for source in sources]


def open_store(config: RunConfig) -> ObjectStore | None:
    """The store that the config's objects are in; None where it names local files alone."""
    if config.data.is_local:
        return None
    from ups.data.objectstore import ObjectStore

    return ObjectStore(config.data.endpoint_url)


def stage(
    config: ProblemConfig,
    split: Split,
    store: ObjectStore | None,
    *,
    stop: threading.Event | None = None,
    progress: Progress | None = None,
) -> list[Staged]:
    """Have the sources of a split on disk, whole, with their SHA-256 known.

    Files of the test split are looked into, too: what cannot be scored is not trained for.

    Args:
        progress: called with bytes done and in all, of the object that is being fetched.
    Raises:
        ObjectUnavailable, FetchError, DiskFull, DataError, Interrupted: see `download`.
        DataError: a test file is not of the config's grid, or the files' frames differ; the values
            of a file lie in others, which its SHA-256 does not tell of; its parameter is not the
            config's.
    """
    staged: list[Staged] = []
    frames: list[tuple[str, int]] = []
    sources = wanted(config, split)
    reused = _reused(config, sources, store, stop)
    for source in sources:
        known = reused.get(source.uri)
        found = stage_one(config, source, store, stop=stop, progress=progress, known=known)
        parameter = None
        if split == "test" or config.problem.parameter_beside(source.path.stem) is not None:
            with open_file(config, source.path, source.rows) as file:
                parameter = file.parameter if file.is_named else None
                frames.append((source.uri, file.num_frames))
        else:  # an earlier version may have cached what it holds
            from ups.data.header import check_own_values

            check_own_values(source.path)
        staged.append(found.model_copy(update={"parameter": parameter}))
    if split == "test":
        check_frames_alike(config, frames)
    return staged


def stage_one(
    config: ProblemConfig,
    source: Wanted,
    store: ObjectStore | None,
    *,
    stop: threading.Event | None = None,
    progress: Progress | None = None,
    known: Download | None = None,
) -> Staged:
    """Have one source on disk, whole, with its SHA-256 known; nothing is looked into.

    Args:
        known: what was found of it before, where nothing is to be fetched.
    Raises: see `stage`.
    """
    from ups.data.stamps import read_stamp

    started = time.monotonic()
    if store is None or source.bucket is None or source.key is None:
        sha256, state = _identify(source.path, stop)
        num_bytes, fetched, verified = state[0], 0, True
    else:
        from ups.data.transfer import download

        one_by_one = not config.features.parallel_downloads
        done = known or download(
            store,
            source.bucket,
            source.key,
            source.path,
            num_threads=1 if one_by_one else None,
            stop=stop,
            progress=progress,
        )
        sha256, num_bytes, verified = done.sha256, done.num_bytes, done.is_verified
        state = file_state(source.path)
        fetched = 0 if done.reused else num_bytes - done.resumed_bytes
    stamp = read_stamp(source.path)
    return as_stored(source, sha256, num_bytes, is_here=True).model_copy(
        update={
            "fetched_bytes": fetched,
            "seconds": time.monotonic() - started,
            "is_verified": verified,
            "state": state,
            "fetch": stamp.fetch if stamp is not None and stamp.sha256 == sha256 else "",
        }
    )


def _reused(
    config: ProblemConfig,
    sources: Sequence[Wanted],
    store: ObjectStore | None,
    stop: threading.Event | None,
) -> dict[str, Download]:
    """The objects that are on disk already, by their URIs; many are asked about at a time."""
    objects = {source.uri: source for source in sources if source.bucket and source.path.exists()}
    if store is None or not config.features.parallel_downloads or len(sources) < 2:
        return {}
    from ups.data.lookup import look_up
    from ups.data.transfer import STORE, reuse

    listed = look_up(store, [source.place for source in objects.values()], stop)

    def ask(source: Wanted) -> Download | None:
        return reuse(store, *source.place, source.path, stop, listed.get(source.place))

    found = at_once(ask, list(objects.values()), MOST_ASKED, stop, STORE)
    return {uri: done for uri, done in zip(objects, found, strict=True) if done is not None}


def fetch_missing(
    config: ProblemConfig,
    sources: Mapping[str, Sequence[Staged]],
    stop: threading.Event | None = None,
) -> dict[str, Sequence[Staged]]:
    """The same sources with all their files on disk.

    Raises:
        DataError: the store has another object by now.
        ObjectUnavailable, FetchError, DiskFull, Interrupted: see `stage`.
    """
    missing = [split for split, of in sources.items() if not all(s.is_here for s in of)]
    if not missing:
        return dict(sources)
    store, found = open_store(config), dict(sources)
    log.info("fetching %s: the latents have to be built anew", " and ".join(missing))
    try:
        for split in missing:
            found[split] = stage(config, cast(Split, split), store, stop=stop)
    finally:
        if store is not None:
            store.close()
    for split in missing:
        for before, now in zip(sources[split], found[split], strict=True):
            if (before.sha256, before.parameter) != (now.sha256, now.parameter):
                raise DataError(
                    f"{now.uri} has changed since the run began: found SHA-256 "
                    f"{now.sha256[:12]}…, expected {before.sha256[:12]}…; run again"
                )
    return found


def is_untouched(source: Staged) -> bool:
    """Whether nobody wrote to the file since its SHA-256 was known, as far as `stat` tells."""
    return source.state is None or source.state == file_state(source.path)


def check_unchanged(sources: Iterable[Staged]) -> None:
    """Refuse sources whose bytes are not any more those that were hashed.

    A file that was only touched is hashed again.

    Raises:
        DataError: a file has another content than its SHA-256 says.
    """
    from ups.data.stamps import hash_file

    for source in sources:
        if is_untouched(source):
            continue
        if (found := hash_file(source.path)) != source.sha256:
            raise DataError(
                f"{source.path} was changed while it was read: found SHA-256 {found[:12]}…, "
                f"expected {source.sha256[:12]}…; run again once nothing writes to it"
            )


def file_state(path: Path) -> tuple[int, ...]:
    """What `stat` says of a file that changes when its content does."""
    return _state(path.stat())


def _state(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def _identify(path: Path, stop: threading.Event | None) -> tuple[str, tuple[int, ...]]:
    """SHA-256 and state of a local file; hashed once, then known by its stamp."""
    from ups.data.stamps import hash_file, read_stamp, write_stamp

    stat, stamp = path.stat(), read_stamp(path)
    if stamp is not None and stamp.spares_hashing(path):
        return stamp.sha256, _state(stat)
    sha256 = hash_file(path, stop)
    try:
        write_stamp(path, stat, sha256, etag="")
    except OSError as error:
        log.info("no stamp beside %s (%s): it will be hashed again next time", path, error)
    return sha256, _state(stat)
