"""Digests of fixed blocks of an object: known in the manifest, compared as the bytes arrive.

The SHA-256 of a whole can only be taken in the order of the file. Blocks can be compared in any
order, each from the buffer that its bytes were received into.

XXH3 is no digest that an attacker could not meet, and need not be: it is there for damage, of
which it misses one case in 2^64. Whoever may write other bytes into the bucket may write a manifest
with their SHA-256 beside them, too. It takes a twentieth of the processor's time.
"""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from ups.errors import ChecksumMismatch, UpsError
from ups.files import read_fully

BLOCK_BYTES = 1 << 20
MOST_BLOCKS = 8192
DIGEST_BYTES = 8
# What arrives before its predecessor is held up to this, else read back when that has come.
HELD_BYTES = 64 << 20


class BlockMismatch(ChecksumMismatch):
    """Raised when a block of an object is another than its manifest says.

    Args: uri, first byte of the block, its end, XXH3 expected, XXH3 found, in hex.
    """

    def __str__(self) -> str:
        uri, start, end, expected, found = self.args
        return (
            f"{uri}: bytes {start}-{end - 1}: XXH3 {found}, expected {expected} by the manifest; "
            "the partial file was removed. If the object changed upstream, refresh the manifest."
        )


@dataclass(frozen=True, slots=True)
class Blocks:
    """What a manifest says of the blocks of an object.

    Attributes:
        num_bytes: of a block; the last may be shorter.
        digests: XXH3 of each, 8 bytes, big-endian, in the order of the file.
    """

    num_bytes: int
    digests: bytes

    def digest(self, index: int) -> bytes:
        return self.digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]


def describe_file(path: Path) -> dict[str, Any]:
    """The entry of a file in a manifest; it is read once."""
    total = path.stat().st_size
    num_bytes = BLOCK_BYTES
    while total > num_bytes * MOST_BLOCKS:
        num_bytes *= 2
    whole, digests = hashlib.sha256(), bytearray()
    buffer = memoryview(bytearray(BLOCK_BYTES))
    with path.open("rb", buffering=0) as file:
        for start in range(0, total, num_bytes):
            block = xxhash.xxh3_64()
            for offset in range(start, min(start + num_bytes, total), BLOCK_BYTES):
                part = buffer[: min(BLOCK_BYTES, total - offset)]
                if missing := read_fully(file.fileno(), part, offset):
                    raise UpsError(f"{path} became {missing} bytes shorter while it was read")
                whole.update(part)
                block.update(part)
            digests += block.digest()
    entry = {"sha256": whole.hexdigest(), "bytes": total}
    return {**entry, "blocks": _record(entry, Blocks(num_bytes, bytes(digests)))}


def read_blocks(entry: Mapping[str, Any]) -> Blocks | None:
    """The blocks that an entry of a manifest records.

    Returns: None where they are not of its SHA-256, as where somebody changed one of the two.
    Raises:
        ValueError, KeyError, TypeError: it records something else.
    """
    record, total = entry["blocks"], entry["bytes"]
    num_bytes = int(record["bytes"])
    if num_bytes < BLOCK_BYTES or num_bytes & (num_bytes - 1):
        raise ValueError(f"blocks of {num_bytes} bytes, expected a power of two from 1 MiB on")
    blocks = Blocks(num_bytes, base64.b64decode(record["xxh3_64"], validate=True))
    expected = -(-total // num_bytes) * DIGEST_BYTES
    if len(blocks.digests) != expected:
        raise ValueError(
            f"digests of {len(blocks.digests)} bytes, expected {expected} for {total} bytes in "
            f"blocks of {num_bytes}"
        )
    return blocks if record["check"] == _record(entry, blocks)["check"] else None


def _record(entry: Mapping[str, Any], blocks: Blocks) -> dict[str, Any]:
    """With a check that ties them to the SHA-256, which is not taken where all blocks match."""
    text = base64.b64encode(blocks.digests).decode()
    tied = f"{entry['sha256']} {entry['bytes']} {blocks.num_bytes} {text}"
    check = xxhash.xxh3_64_hexdigest(tied.encode())
    return {"bytes": blocks.num_bytes, "xxh3_64": text, "check": check}


@dataclass(slots=True)
class _Block:
    """A block of which some bytes are there."""

    num_arrived: int = 0
    state: Any = field(default_factory=xxhash.xxh3_64)
    num_hashed: int = 0
    held: dict[int, bytes] = field(default_factory=dict)

    def update(self, data: bytes | memoryview) -> None:
        self.state.update(data)
        self.num_hashed += len(data)


class BlockCheck:
    """Compares the blocks of one object as they arrive; safe to share between threads.

    Args:
        arrived: what an earlier process left in the file, which is compared once it is read again:
            `left_over` blocks by whoever asks, others with the rest of them.
    Attributes:
        num_left: blocks that are not compared yet.
        matched: called with each block that is what it should be.
        left_over: blocks of which all is there already.
    """

    def __init__(
        self, uri: str, total: int, blocks: Blocks, arrived: Iterable[tuple[int, int]] = ()
    ) -> None:
        self._uri, self._total, self._blocks = uri, total, blocks
        self._lock = threading.Lock()  # guards what stands below
        self._room = HELD_BYTES
        self._begun: dict[int, _Block] = {}
        self.num_left = len(blocks.digests) // DIGEST_BYTES
        self.matched: Callable[[int], None] = lambda _: None
        for start, end in arrived:
            for index, _, length in self._pieces(start, end):
                self._begun.setdefault(index, _Block()).num_arrived += length
        self.left_over = [
            index for index, block in self._begun.items() if block.num_arrived == self._size(index)
        ]

    def add(self, fd: int, start: int, data: memoryview) -> None:
        """Take note of bytes that have arrived, and are in the file at `start`.

        Raises:
            BlockMismatch: a block is complete with them, and is not what it should be.
        """
        for index, offset, length in self._pieces(start, start + len(data)):
            piece, data = data[:length], data[length:]
            if length == self._size(index):
                self._compare(index, xxhash.xxh3_64_digest(piece))
            elif (block := self._add(index, offset, piece)) is not None:
                self._finish(fd, index, block)

    def check_left_over(self, fd: int, index: int) -> None:
        """Compare a block that an earlier process left; raises as `add`."""
        with self._lock:
            block = self._begun.pop(index)
        self._finish(fd, index, block)

    def _add(self, index: int, offset: int, piece: memoryview) -> _Block | None:
        """The block, if all of it is there now."""
        with self._lock:
            block = self._begun.setdefault(index, _Block())
            block.num_arrived += len(piece)
            if offset == block.num_hashed:
                block.update(piece)
                while (held := block.held.pop(block.num_hashed, None)) is not None:
                    self._room += len(held)
                    block.update(held)
            elif len(piece) <= self._room:
                self._room -= len(piece)
                block.held[offset] = bytes(piece)
            if block.num_arrived < self._size(index):
                return None
            self._room += sum(map(len, block.held.values()))
            return self._begun.pop(index)

    def _finish(self, fd: int, index: int, block: _Block) -> None:
        """Compare a block that is there, reading back what was not hashed as it came."""
        at, end = index * self._blocks.num_bytes, self._size(index)
        buffer = memoryview(bytearray(min(BLOCK_BYTES, end - block.num_hashed)))
        while block.num_hashed < end:
            part = buffer[: end - block.num_hashed]
            if missing := read_fully(fd, part, at + block.num_hashed):
                raise UpsError(f"the partial file of {self._uri} became {missing} bytes shorter")
            block.update(part)
        self._compare(index, block.state.digest())

    def _compare(self, index: int, found: bytes) -> None:
        expected = self._blocks.digest(index)
        if found != expected:
            start = index * self._blocks.num_bytes
            end = start + self._size(index)
            raise BlockMismatch(self._uri, start, end, expected.hex(), found.hex())
        with self._lock:
            self.num_left -= 1
        self.matched(index)

    def expect(self, num: int) -> None:
        """So many more blocks come; a negative number does not, having been compared before."""
        with self._lock:
            self.num_left += num

    def _pieces(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(block, offset in it, length) of the parts of [start, end) in each block."""
        size = self._blocks.num_bytes
        while start < end:
            index, offset = divmod(start, size)
            length = min(size - offset, end - start)
            yield index, offset, length
            start += length

    def _size(self, index: int) -> int:
        size = self._blocks.num_bytes
        return min(size, self._total - index * size)
