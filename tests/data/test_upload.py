"""Uploads: whole or in parts, compared, and gone on with where an earlier one ended."""

from __future__ import annotations

import random
import threading

import pytest

from tests.data.objects import BUCKET, MIB
from ups.data import upload
from ups.errors import DataError, Interrupted

CONTENT = random.Random(1).randbytes(6 * MIB + 123)


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(upload, "WHOLE_BYTES", 2 * MIB)
    monkeypatch.setattr(upload, "PART_BYTES", MIB)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "x.h5"
    path.write_bytes(CONTENT)
    return path


def stored(s3_client, key):
    return s3_client.get_object(Bucket=BUCKET, Key=key)["Body"].read()


@pytest.mark.parametrize("size", [0, 1, MIB, len(CONTENT)])
def test_what_is_stored_is_the_file(store, file, s3_client, small_parts, size, request):
    file.write_bytes(CONTENT[:size])
    key, told = request.node.name, []
    assert store.send(file, BUCKET, key, lambda *args: told.append(args)) == 0
    assert stored(s3_client, key) == CONTENT[:size]
    assert told[-1] == (size, size)
    assert sorted(told) == told


def test_an_upload_that_was_cut_short_goes_on_where_it_ended(
    store, file, s3_client, small_parts, request
):
    key, stop = request.node.name, threading.Event()
    with pytest.raises(Interrupted):
        store.send(file, BUCKET, key, lambda done, _: done > MIB and stop.set(), stop)
    assert not store.exists(BUCKET, key)
    assert MIB <= store.send(file, BUCKET, key) < 6 * MIB
    assert stored(s3_client, key) == CONTENT


def test_parts_of_another_file_are_not_taken_over(store, file, s3_client, small_parts, request):
    key, stop = request.node.name, threading.Event()
    with pytest.raises(Interrupted):
        store.send(file, BUCKET, key, lambda done, _: done > MIB and stop.set(), stop)
    changed = bytearray(CONTENT)
    changed[0] ^= 1  # of the first part, which is there
    file.write_bytes(changed)
    assert store.send(file, BUCKET, key) == 0
    assert stored(s3_client, key) == changed


def test_a_file_that_changes_meanwhile_is_refused(store, file, small_parts, request):
    def change(done, _):
        if done < 3 * MIB:
            with file.open("ab") as end:
                end.write(b"more")

    with pytest.raises(DataError, match=r"x.h5 was changed while it was uploaded"):
        store.send(file, BUCKET, request.node.name, change)


def test_what_is_damaged_on_its_way_is_refused_by_the_store(
    store, file, small_parts, request, monkeypatch
):
    monkeypatch.setattr(upload._Part, "md5", lambda self: bytes(16))
    with pytest.raises(Exception, match="BadDigest|InvalidDigest"):
        store.send(file, BUCKET, request.node.name)
    assert not store.exists(BUCKET, request.node.name)
