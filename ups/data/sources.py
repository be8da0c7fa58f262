"""What a run needs, by name: from the config's sources to verified files on disk."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ups.config import Model, ProblemConfig, RunConfig, Split
from ups.progress import Progress

if TYPE_CHECKING:
    from ups.data.objectstore import ObjectStore
    from ups.data.pdebench import TrajectoryFile

log = logging.getLogger(__name__)


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
        return str(self.path) if self.bucket is None else f"s3://{self.bucket}/{self.key}"


class Staged(Model):
    """A source on disk whose content is known."""

    split: Split
    uri: str
    path: Path
    rows: tuple[int, int] | None
    sha256: str
    num_bytes: int
    fetched_bytes: int
    seconds: float
    is_verified: bool = True  # False: no digest from the store to compare with


def wanted(config: ProblemConfig, split: Split) -> list[Wanted]:
    """The sources of a split: objects where the config names them, else files under the root.

    Raises:
        DataError: the config names no objects, and there is no such file either.
    """
    root, data, problem = config.data_root, config.data, config.problem
    if problem.sources is None:
        from ups.data.pdebench import find_files

        return [
            Wanted(problem=problem.name, split=split, bucket=None, key=None, path=path, rows=None)
            for path in find_files(root, problem.name, split)
        ]
    found = []
    for source in problem.sources[split]:
        bucket, key = source.bucket or data.bucket, source.key
        place = {"bucket": bucket, "key": key, "path": root / bucket / key, "rows": source.rows}
        found.append(Wanted(problem=problem.name, split=split, **place))
    return found


def open_file(config: ProblemConfig, path: Path, rows: tuple[int, int] | None) -> TrajectoryFile:
    """A file of the problem of this config, or rows of it, checked for the config's grid.

    Raises:
        DataError: see `TrajectoryFile`.
    """
    from ups.data.pdebench import TrajectoryFile

    grid_points, equation = config.data.grid_points, config.problem.equation
    return TrajectoryFile(path, rows, grid_points=grid_points, equation=equation)


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

    Args:
        progress: called with bytes done and in all, of the object that is being fetched.
    Raises:
        ObjectUnavailable, FetchError, DiskFull, DataError, Interrupted: see `download`.
    """
    staged = []
    for source in wanted(config, split):
        started = time.monotonic()
        if store is None or source.bucket is None or source.key is None:
            sha256, num_bytes, fetched, verified = *_identify(source.path, stop), 0, True
        else:
            from ups.data.transfer import download

            one_by_one = not config.features.parallel_downloads
            done = download(
                store,
                source.bucket,
                source.key,
                source.path,
                num_threads=1 if one_by_one else None,
                stop=stop,
                progress=progress,
            )
            sha256, num_bytes, verified = done.sha256, done.num_bytes, done.is_verified
            fetched = 0 if done.reused else num_bytes - done.resumed_bytes
        staged.append(
            Staged(
                split=split,
                uri=source.uri,
                path=source.path,
                rows=source.rows,
                sha256=sha256,
                num_bytes=num_bytes,
                fetched_bytes=fetched,
                seconds=time.monotonic() - started,
                is_verified=verified,
            )
        )
    return staged


def _identify(path: Path, stop: threading.Event | None) -> tuple[str, int]:
    """SHA-256 and size of a local file; hashed once, then known by its stamp."""
    from ups.data.stamps import hash_file, read_stamp, write_stamp

    stamp = read_stamp(path)
    if stamp is not None and stamp.spares_hashing(path):
        return stamp.sha256, stamp.num_bytes
    stat = path.stat()
    sha256 = hash_file(path, stop)
    try:
        write_stamp(path, stat, sha256, etag="")
    except OSError as error:
        log.info("no stamp beside %s (%s): it will be hashed again next time", path, error)
    return sha256, stat.st_size
