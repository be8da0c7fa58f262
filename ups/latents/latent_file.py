"""One file of latents: its plan, its safetensors header, and its chunks against their checksums."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import xxhash

from ups.config import Model, ProblemConfig, Split
from ups.errors import CacheDamaged

if TYPE_CHECKING:
    from ups.data.pdebench import TrajectoryFile

DATA_ALIGNMENT = 4096
SAFETENSORS_DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
VERIFY_READ_BYTES = 8 << 20


class LatentFile(Model):
    """One safetensors file: the latents of one source of a split.

    Attributes:
        parameters: of the equation, by their keys: `nu` or `beta`.
    """

    name: str
    split: Split
    shape: tuple[int, int, int, int]
    dtype: Literal["float16", "bfloat16", "float32"]
    dt: float
    parameters: dict[str, float]
    chunk_rows: int
    checksums: tuple[str, ...] = ()
    mtime_ns: int = 0

    @property
    def row_bytes(self) -> int:
        _, frames, tokens, dim = self.shape
        return frames * tokens * dim * ITEM_BYTES[self.dtype]

    @property
    def num_bytes(self) -> int:
        return self.shape[0] * self.row_bytes

    @property
    def file_bytes(self) -> int:
        return self.data_offset + self.num_bytes

    @property
    def header(self) -> bytes:
        """The safetensors header, padded so that the tensor starts on a page boundary."""
        fields = {
            "__metadata__": {
                "split": self.split,
                "dt": repr(self.dt),
                **{name: repr(value) for name, value in self.parameters.items()},
            },
            "latents": {
                "dtype": SAFETENSORS_DTYPES[self.dtype],
                "shape": list(self.shape),
                "data_offsets": [0, self.num_bytes],
            },
        }
        text = json.dumps(fields, separators=(",", ":")).encode()
        padded = -(-(len(text) + 8) // DATA_ALIGNMENT) * DATA_ALIGNMENT - 8
        return padded.to_bytes(8, "little") + text.ljust(padded)

    @property
    def data_offset(self) -> int:
        return len(self.header)

    @property
    def num_chunks(self) -> int:
        return -(-self.shape[0] // self.chunk_rows)

    def chunk(self, index: int) -> range:
        """The rows of a chunk."""
        first = index * self.chunk_rows
        return range(first, min(first + self.chunk_rows, self.shape[0]))


def plan_file(config: ProblemConfig, reader: TrajectoryFile, stem: str, split: Split) -> LatentFile:
    """The file that the latents of a source go into, before anything is encoded."""
    return LatentFile(
        name=f"{stem}.safetensors",
        split=split,
        shape=(reader.num_trajectories, reader.num_frames, config.latent.tokens, config.latent.dim),
        dtype=config.training.latent_cache_dtype,
        dt=reader.dt,
        parameters={reader.equation.parameter: reader.parameter},
        chunk_rows=config.training.encode_batch_size,
    )


def verify_file(path: Path, file: LatentFile) -> None:
    """Read the whole file and compare its chunks with their checksums.

    Raises:
        CacheDamaged: it is gone, or a chunk or the header differs.
    """
    for index, found in enumerate(read_checksums(path, file)):
        check_chunk(path, index, found, file.checksums[index])


def read_checksums(path: Path, file: LatentFile) -> Iterator[str]:
    """The checksum of each chunk as it is on the disk.

    Raises:
        CacheDamaged: the file is gone, or its header differs.
    """
    with open_latents(path, file) as handle:
        for index in range(len(file.checksums)):
            yield read_checksum(handle, file, index)


@contextlib.contextmanager
def open_latents(path: Path, file: LatentFile) -> Iterator[BinaryIO]:
    """Open a file of latents to read it.

    Raises:
        CacheDamaged: it is gone, or its header is not the planned one.
    """
    try:
        handle = path.open("rb", buffering=0)
    except FileNotFoundError as error:
        raise CacheDamaged(f"{path} is gone") from error
    with handle:
        if handle.read(file.data_offset) != file.header:
            raise CacheDamaged(f"{path}: its header is not the one that was written")
        yield handle


def read_checksum(handle: BinaryIO, file: LatentFile, index: int) -> str:
    """The checksum of one chunk; of what there is of it, where the file is shorter."""
    rows = file.chunk(index)
    handle.seek(file.data_offset + rows.start * file.row_bytes)
    left, digest = len(rows) * file.row_bytes, xxhash.xxh3_64()
    while left and (block := handle.read(min(left, VERIFY_READ_BYTES))):
        digest.update(block)
        left -= len(block)
    return digest.hexdigest()


def check_chunk(path: Path, index: int, found: str, expected: str) -> None:
    """Refuse a chunk whose checksum is not the one in the manifest.

    Raises:
        CacheDamaged: it is another one.
    """
    if found != expected:
        raise CacheDamaged(f"{path}: chunk {index} has checksum {found}, expected {expected}")


def check_size(path: Path, file: LatentFile) -> os.stat_result:
    """Refuse a file that is not as long as the manifest, or the plan, says.

    Raises:
        CacheDamaged: it is gone, or of another size.
    """
    try:
        stat = path.stat()
    except FileNotFoundError as error:
        raise CacheDamaged(f"{path} is gone") from error
    if stat.st_size != file.file_bytes:
        raise CacheDamaged(f"{path} has {stat.st_size} bytes, expected {file.file_bytes}")
    return stat


def check_stamp(path: Path, file: LatentFile) -> None:
    """Refuse a file of another size; read it whole where it was touched since it was written.

    Raises:
        CacheDamaged: it is gone, of another size, or a chunk or the header differs.
    """
    stat = check_size(path, file)
    if stat.st_mtime_ns != file.mtime_ns:
        verify_file(path, file)
        with contextlib.suppress(PermissionError):  # the next look is a `stat` again
            os.utime(path, ns=(stat.st_atime_ns, file.mtime_ns))
