"""Blocks of objects: compared in whatever order their bytes arrive, else the whole is hashed."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.data.objects import BUCKET, CONTENT, MIB, SHA256, leftovers, manifest_key, without_blocks
from ups.data import blocks
from ups.data.blocks import BlockCheck, BlockMismatch, describe_file, read_blocks
from ups.data.cuts import Want
from ups.data.ranges import RangedFetch, start_fetching
from ups.errors import ChecksumMismatch, DataError

SIZES = (0, 1, MIB - 1, MIB, MIB + 1, 3 * MIB, len(CONTENT))


@pytest.fixture
def opened(tmp_path):
    """`opened(content)`: a descriptor of a file that holds it, and its blocks."""
    path, fds = tmp_path / "x.h5", []

    def make(content):
        path.write_bytes(content)
        fds.append(os.open(path, os.O_RDWR))
        return fds[-1], read_blocks(describe_file(path))

    yield make
    for fd in fds:
        os.close(fd)


@pytest.fixture
def read_back(monkeypatch):
    """Of what is read back of partial files, the lengths."""
    read, real = [], blocks.read_fully

    def counted(fd, view, offset):
        read.append(len(view))
        return real(fd, view, offset)

    for module in ("blocks", "ranges"):
        monkeypatch.setattr(f"ups.data.{module}.read_fully", counted)
    return read


def pieces(total, rng):
    """[start, end) of parts of a whole, in any order."""
    borders = sorted({0, total, *(rng.randrange(total) for _ in range(12))})
    parts = list(itertools.pairwise(borders))
    rng.shuffle(parts)
    return parts


@pytest.mark.parametrize("size", SIZES)
def test_a_file_is_described_by_its_sha256_its_size_and_its_blocks(tmp_path, size):
    (tmp_path / "x.h5").write_bytes(CONTENT[:size])
    entry = json.loads(json.dumps(describe_file(tmp_path / "x.h5")))
    assert (entry["sha256"], entry["bytes"]) == (hashlib.sha256(CONTENT[:size]).hexdigest(), size)
    found = read_blocks(entry)
    assert (found.num_bytes, len(found.digests)) == (MIB, 8 * -(-size // MIB))


@pytest.fixture
def received():
    """`received(content, start, end)`: that, in a buffer that is used over and over."""
    buffer = bytearray(len(CONTENT))

    def receive(content, start, end):
        buffer[:] = bytes(len(buffer))
        buffer[: end - start] = content[start:end]
        return memoryview(buffer)[: end - start]

    return receive


def test_blocks_grow_where_there_would_be_too_many(opened, received, monkeypatch):
    monkeypatch.setattr(blocks, "MOST_BLOCKS", 2)
    fd, found = opened(CONTENT)
    assert (found.num_bytes, len(found.digests)) == (4 * MIB, 2 * 8)
    check = BlockCheck("s3://b/x.h5", len(CONTENT), found)
    for start in range(0, len(CONTENT), 700_000):
        check.add(fd, start, received(CONTENT, start, min(start + 700_000, len(CONTENT))))
    assert check.num_left == 0


@pytest.mark.parametrize("room", [0, MIB // 2, 64 * MIB])
@pytest.mark.parametrize("size", SIZES[1:])
def test_in_any_order_right_bytes_match_and_a_wrong_one_is_told_with_its_block(
    opened, received, monkeypatch, read_back, size, room
):
    monkeypatch.setattr(blocks, "HELD_BYTES", room)
    content, rng = CONTENT[:size], random.Random(size)
    fd, found = opened(content)
    read_back.clear()
    for _ in range(10):
        check = BlockCheck("s3://b/x.h5", size, found)
        for start, end in pieces(size, rng):
            check.add(fd, start, received(content, start, end))
        assert (check.num_left, check._begun, check._room) == (0, {}, room)
    assert room != 64 * MIB or read_back == []
    assert room != 0 or size == 1 or read_back

    bad = rng.randrange(size)
    false = content[:bad] + bytes([content[bad] ^ 1]) + content[bad + 1 :]
    os.pwrite(fd, false, 0)
    check, first = BlockCheck("s3://b/x.h5", size, found), bad // MIB * MIB
    told = rf"s3://b/x.h5: bytes {first}-{min(first + MIB, size) - 1}: XXH3 \w+, expected \w+ by"

    def arrive():
        for start, end in pieces(size, rng):
            check.add(fd, start, received(false, start, end))

    with pytest.raises(BlockMismatch, match=told):
        arrive()


@pytest.fixture
def ranged(proxied, proxy, own_key, dest):
    """`ranged(**options)`: a fetch of an object through the proxy, by one thread."""
    dest.parent.mkdir()
    return lambda range_bytes=MIB, **options: RangedFetch(
        proxied, proxied.head(BUCKET, own_key), dest, 1, range_bytes, **options
    )


def test_what_arrives_is_not_read_again_whatever_comes_first(ranged, read_back, monkeypatch):
    added, real = [], BlockCheck.add

    def noted(check, fd, start, data):
        added.append((start, start + len(data)))
        real(check, fd, start, data)

    monkeypatch.setattr(BlockCheck, "add", noted)
    fetch = ranged(16 * MIB, wants=[Want(0, 3_500_000, 3_500_100), Want(1, 10, 2 * MIB + 5)])
    assert fetch.run(None, None) == SHA256
    assert read_back == []
    assert [end for start, end in added if start // MIB != (end - 1) // MIB] == []
    assert fetch.partial.read_bytes() == CONTENT


def test_all_is_there_for_whoever_waits_once_all_is_compared(ranged, monkeypatch):
    real = BlockCheck.add

    def late(check, fd, start, data):
        real(check, fd, start, data)
        if not check.num_left:  # as when the thread loses its core just here
            time.sleep(0.2)

    monkeypatch.setattr(BlockCheck, "add", late)
    fetch = ranged()
    with ThreadPoolExecutor(1) as pool:
        with fetch.opened():
            waiting = pool.submit(fetch.wait, 0, len(CONTENT))
            start_fetching([fetch], 1)
            fetch.verify(None, None)
        waiting.result()


def test_without_blocks_the_whole_is_hashed(ranged, s3_client, own_key, read_back):
    without_blocks(s3_client, own_key)
    assert ranged().run(None, None) == SHA256
    assert sum(read_back) == len(CONTENT)


def test_a_wrong_byte_in_a_block_ends_the_fetch_there_and_nothing_of_it_is_kept(
    ranged, fetch, proxy, s3_client, own_key, dest
):
    false = bytearray(CONTENT)
    false[2 * MIB + 500_000] ^= 1
    s3_client.put_object(Bucket=BUCKET, Key=own_key, Body=bytes(false))
    told = r"x.h5: bytes 2097152-3145727: XXH3 \w{16}, expected \w{16} by the manifest; the partial"
    with pytest.raises(BlockMismatch, match=told):
        ranged().run(None, None)
    assert proxy.ranges == [f"bytes={i * MIB}-{(i + 1) * MIB - 1}" for i in range(3)]
    assert leftovers(dest) == []
    with pytest.raises(BlockMismatch, match=told):
        fetch(own_key)
    assert leftovers(dest) == []


@pytest.mark.parametrize("damage", ["none", "a whole block", "a block that goes on"])
def test_what_an_earlier_process_left_is_read_again_once(
    ranged, fetch, own_key, dest, read_back, damage
):
    killed = ranged()
    with killed.opened():
        os.pwrite(killed.fd, CONTENT[: 2 * MIB + 500_000], 0)
        killed.filled[:3] = MIB, MIB, 500_000
    left = ranged()
    assert left.resumed_bytes == 2 * MIB + 500_000
    if damage != "none":
        at = MIB + 7 if damage == "a whole block" else 2 * MIB + 7
        with left.partial.open("r+b") as file:
            file.seek(at)
            file.write(bytes([CONTENT[at] ^ 1]))
        start = at // MIB * MIB
        with pytest.raises(BlockMismatch, match=f"bytes {start}-{start + MIB - 1}: "):
            left.run(None, None)
        assert leftovers(dest) == []
        return
    assert fetch(own_key).resumed_bytes == left.resumed_bytes
    assert dest.read_bytes() == CONTENT
    assert sum(read_back) == 3 * MIB  # the block that is made whole is read from its begin


def test_blocks_that_are_none_are_no_manifest_and_those_of_other_bytes_are_not_used(
    connect, fetch, s3_client, own_key, caplog
):
    place = {"Bucket": BUCKET, "Key": manifest_key(own_key)}
    true = json.loads(s3_client.get_object(**place)["Body"].read())

    def put(**changed):
        entry = true["x.h5"] | {"blocks": true["x.h5"]["blocks"] | changed}
        s3_client.put_object(**place, Body=json.dumps({"x.h5": entry}).encode())

    for wrong in (
        {"bytes": MIB // 2},
        {"bytes": 3 * MIB},
        {"bytes": None},
        {"xxh3_64": "AAAA"},
        {"xxh3_64": "?" + true["x.h5"]["blocks"]["xxh3_64"]},
        {"xxh3_64": 7},
    ):
        put(**wrong)
        with pytest.raises(DataError, match=r"manifest.json is no manifest .* where blocks may be"):
            connect().head(BUCKET, own_key)
    s3_client.put_object(**place, Body=json.dumps(true).replace(SHA256, "0" * 64).encode())
    assert connect().head(BUCKET, own_key).blocks is None
    assert "the blocks of x.h5 are not of its SHA-256" in caplog.text
    with pytest.raises(ChecksumMismatch, match=f"sha256 {SHA256}, expected 000000"):
        fetch(own_key)
