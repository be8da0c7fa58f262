"""An entry whose parts other processes encode, of this machine or of others.

A worker writes each part into a file of its own, beside those of the build. The process that builds
the entry puts it in its place, and takes it into the journal: so whatever a worker leaves behind
when it dies, or writes when nobody waits for it any more, is a file that is swept.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import xxhash

from ups.config import Model, ProblemConfig
from ups.data.pdebench import TrajectoryFile
from ups.data.sources import Staged, open_file
from ups.errors import CacheDamaged, ClusterError, Interrupted, refusals_explained
from ups.files import start_writeback, write_fully
from ups.latents.build import Build
from ups.latents.chunks import ChunkEncoder
from ups.latents.cluster import RESTART, SHARE, check_source, code_identity, worker_name
from ups.latents.encode import PatchEncoder
from ups.latents.journal import Job
from ups.latents.latent_file import LatentFile, check_size

log = logging.getLogger(__name__)

SUFFIX = ".part-"  # of a worker's file, before what makes it its own
ENOUGH_FILES = 16  # a file that is no more than its share of so many is not divided
LEAST_BYTES = 64 << 20  # of the latents of a part of another: some seconds of one core …
MOST_PARTS = 256  # … but no more of them than this


class Part(Model):
    """Consecutive chunks of one file of a build, as a worker gets them.

    Attributes:
        index: of the file among those of the build.
        first, end: the chunks; all of the file make it whole.
        directory: the build's own, where the worker's file goes.
        ticket: name of a file there; once it is gone, nobody waits for the part any more.
        source_state: size and modification time of the source, in nanoseconds.
        code: what has to be the same on the worker, which may have come late.
    """

    index: int
    file: LatentFile
    first: int
    end: int
    directory: Path
    ticket: str
    source: Path
    source_state: tuple[int, int]
    code: dict[str, str]
    rows: tuple[int, int] | None

    @property
    def is_whole(self) -> bool:
        return (self.first, self.end) == (0, self.file.num_chunks)

    @property
    def label(self) -> str:
        """`train_003`, or `train_003 rows 0-512` where it is not all of the file."""
        stem = self.file.name.partition(".")[0]
        last = self.file.chunk(self.end - 1)
        return stem if self.is_whole else f"{stem} rows {self._first_row}-{last.stop}"

    @property
    def _first_row(self) -> int:
        return self.file.chunk(self.first).start

    @property
    def jobs(self) -> list[Job]:
        return [(self.index, chunk) for chunk in range(self.first, self.end)]


class Encoded(Model):
    """What a worker made of a part: a file beside those of the build, and its chunks' checksums."""

    name: str
    checksums: tuple[str, ...]
    worker: str


class Workers(Protocol):
    """What encodes parts: they are ready, and can."""

    def encode(
        self,
        config: ProblemConfig,
        encoder: Mapping[str, Any],
        parts: Sequence[Part],
        take: Callable[[Part, Encoded], None],
        stop: threading.Event,
    ) -> None:
        """Have all parts encoded; `take` gets each as it comes, in the calling thread.

        Args:
            encoder: as in a manifest.
        Raises:
            Interrupted: `stop` was set. What a worker raised.
        """


Spread = Callable[[ProblemConfig, Sequence[Staged]], AbstractContextManager[Workers]]
"""Gets the workers that can read these sources; refuses, before anything is built."""


class SpreadBuild(Build):
    """A build whose chunks others encode: the same entry, byte for byte."""

    def __init__(self, *args: Any, spread: Spread) -> None:
        super().__init__(*args)
        self._spread = spread

    def begin(self) -> None:
        self._workers = self.resources.enter_context(self._spread(self.config, self.sources))
        super().begin()
        sweep(self.directory)  # what a build left that was killed

    def _encode_all(self, stop: threading.Event, count: Callable[[Job], None]) -> None:
        ticket = self.directory / f"ticket{SUFFIX}{secrets.token_hex(4)}"
        parts, names = self._parts(ticket.name), set()

        def take(part: Part, encoded: Encoded) -> None:
            self._adopt(part, encoded)
            names.add(encoded.worker)
            for job in part.jobs:
                count(job)

        ticket.touch()
        for part in parts:
            if part.is_whole:  # the worker's own file needs the room
                os.truncate(self.directory / part.file.name, 0)
                os.truncate(self.directory / part.file.name, part.file.file_bytes)
        try:
            encoder = self.encoder.to_manifest()
            self._workers.encode(self.config, encoder, parts, take, stop)
        finally:
            ticket.unlink(missing_ok=True)
            sweep(self.directory)
        log.info("encoded in %d parts by %d workers", len(parts), len(names))

    def _parts(self, ticket: str) -> list[Part]:
        """What is not done yet: whole files, or blocks of their rows."""
        total = sum(file.num_bytes for file in self.files)
        part_bytes = max(LEAST_BYTES, total // MOST_PARTS)
        parts: list[Part] = []
        for index, jobs in groupby(self.jobs(), key=lambda job: job[0]):
            file, source = self.files[index], self.sources[index]
            most = max(1, part_bytes // (file.chunk_rows * file.row_bytes))
            if file.num_bytes * ENOUGH_FILES <= total:
                most = file.num_chunks  # it is not copied then
            stat = source.path.stat()
            same = {
                "index": index,
                "file": file,
                "directory": self.directory.absolute(),
                "ticket": ticket,
                "source": source.path.absolute(),
                "source_state": (stat.st_size, stat.st_mtime_ns),
                "code": code_identity(),
                "rows": source.rows,
            }
            for first, end in _runs([chunk for _, chunk in jobs], most):
                parts.append(Part(first=first, end=end, **same))
        return parts

    def _adopt(self, part: Part, encoded: Encoded) -> None:
        """Put what a worker wrote into its place.

        Raises:
            CacheDamaged: it is not here as the worker wrote it.
        """
        path = self.directory / encoded.name
        if part.is_whole:  # each reader compares its chunks with the checksums
            check_size(path, part.file)
            path.rename(self.directory / part.file.name)
        else:
            with path.open("rb", buffering=0) as written:
                for job, checksum in zip(part.jobs, encoded.checksums, strict=True):
                    num_bytes = len(part.file.chunk(job[1])) * part.file.row_bytes
                    data = written.read(num_bytes)
                    if (found := xxhash.xxh3_64_hexdigest(data)) != checksum:
                        raise CacheDamaged(
                            f"{path}: chunk {job[1]} has checksum {found}, and {encoded.worker} "
                            f"wrote {checksum}: look at the file system that both share"
                        )
                    self.write(job, memoryview(data))
            path.unlink()
        for job, checksum in zip(part.jobs, encoded.checksums, strict=True):
            self.note(job, checksum)


def _runs(chunks: Sequence[int], most: int) -> list[tuple[int, int]]:
    """Stretches of at most so many of these chunks: the first, and the one after the last."""
    runs: list[tuple[int, int]] = []
    for chunk in chunks:
        if runs and runs[-1][1] == chunk and chunk - runs[-1][0] < most:
            runs[-1] = (runs[-1][0], chunk + 1)
        else:
            runs.append((chunk, chunk + 1))
    return runs


def sweep(directory: Path) -> None:
    """Remove what workers wrote and nobody took, and the tickets for it."""
    for path in directory.glob(f"*{SUFFIX}*"):
        path.unlink(missing_ok=True)


def encode_part(config: ProblemConfig, encoder: Mapping[str, Any], part: Part) -> Encoded:
    """Encode a part on this machine, into a file of its own; called on a worker.

    Raises:
        ClusterError: this worker has other sources or libraries, or does not see the cache.
        DataError: the source is not the one that was staged, or holds what is no field value.
        Interrupted: nobody waits for the part any more.
        DiskFull, UpsError: the system refuses.
    """
    if (found := code_identity()) != part.code:
        raise ClusterError(f"{worker_name()} has {found}, expected {part.code}: {RESTART}")
    check_source(part.source, part.source_state)
    if not part.directory.is_dir():
        raise ClusterError(f"{worker_name()} does not see {part.directory}, or it is gone: {SHARE}")
    path = part.directory / f"{part.file.name}{SUFFIX}{secrets.token_hex(4)}"
    projection = PatchEncoder.from_manifest(encoder)
    try:
        with (
            refusals_explained(),
            open_file(config, part.source, part.rows) as reader,
            ChunkEncoder(config, projection, _device(config)) as chunks,
        ):
            checksums = _write(part, path, reader, chunks)
    except BaseException:  # a kill's signal, too
        path.unlink(missing_ok=True)
        raise
    return Encoded(name=path.name, checksums=checksums, worker=worker_name())


def _write(part: Part, path: Path, reader: TrajectoryFile, chunks: ChunkEncoder) -> tuple[str, ...]:
    """Encode the chunks into a new file, which is on the disk then; returns their checksums."""
    checksums, offset = [], 0
    with path.open("xb", buffering=0) as out:
        if part.is_whole:
            write_fully(out.fileno(), part.file.header)
            offset = part.file.data_offset
        for chunk in range(part.first, part.end):
            if not (part.directory / part.ticket).exists():
                raise Interrupted(f"nobody waits for {part.label} any more: its ticket is gone")
            rows = part.file.chunk(chunk)
            data = chunks.encode(reader, rows.start, rows.stop)
            write_fully(out.fileno(), data)
            start_writeback(out.fileno(), offset, len(data))
            offset += len(data)
            checksums.append(xxhash.xxh3_64_hexdigest(data))
        os.fsync(out.fileno())
    return tuple(checksums)


def _device(config: ProblemConfig) -> str:
    """Of this worker: its GPU if the config allows one and it has one; none is demanded of it."""
    import torch

    wanted = config.features.gpu_encode and config.training.device != "cpu"
    return "cuda" if wanted and torch.cuda.is_available() else "cpu"
