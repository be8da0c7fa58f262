"""Manifests that several write at once: nobody's entries are lost."""

from __future__ import annotations

import contextlib
import json
from datetime import timedelta
from functools import partial

import pytest

from tests.data.objects import BUCKET
from ups.background import Background
from ups.data import manifest_notes, manifests
from ups.data.manifests import Manifests
from ups.errors import ObjectUnavailable


def entry(digit, num_bytes=1):
    return {"sha256": 64 * str(digit), "bytes": num_bytes}


@pytest.fixture
def folder(store, request):
    """A prefix of its own in a bucket that is there."""
    store._call("", lambda: store._ensure_bucket(BUCKET))
    return request.node.originalname


@pytest.fixture
def read(s3_client, folder):
    """What the manifest says now, and how many notes are beside it."""

    def read():
        place = {"Bucket": BUCKET, "Key": f"{folder}/manifest.json"}
        digits = {n: e["sha256"][0] for n, e in json.loads(body(s3_client, place)).items()}
        return digits, len(notes(s3_client, folder))

    return read


def body(s3_client, place):
    return s3_client.get_object(**place)["Body"].read()


def notes(s3_client, folder):
    found = s3_client.list_objects_v2(Bucket=BUCKET, Prefix=f"{folder}/manifest.json.d/")
    return [entry["Key"] for entry in found.get("Contents", [])]


def test_who_writes_over_another_has_seen_what_he_said(connect, folder, read, monkeypatch):
    slow, quick = connect(), connect()
    monkeypatch.setattr(manifests, "_ONE_WRITER", contextlib.nullcontext())  # as two processes
    fetch = Manifests._fetch

    def interrupted(self, bucket, key):
        found = fetch(self, bucket, key)
        if self is slow._manifests:
            monkeypatch.setattr(Manifests, "_fetch", fetch)
            quick.record(BUCKET, {f"{folder}/quick": entry(2)})
            assert read()[0] == {"quick": "2", "slow": "1"}  # by the note that is there
        return found

    monkeypatch.setattr(Manifests, "_fetch", interrupted)
    slow.record(BUCKET, {f"{folder}/slow": entry(1)})
    assert read() == ({"quick": "2", "slow": "1"}, 2)


def test_ten_who_write_at_once_are_all_in_it(connect, folder, read, monkeypatch):
    monkeypatch.setattr(manifests, "_ONE_WRITER", contextlib.nullcontext())
    stores = [connect() for _ in range(10)]
    writers = [
        Background(partial(store.record, BUCKET, {f"{folder}/{i}": entry(i)}), "write")
        for i, store in enumerate(stores)
    ]
    for writer in writers:
        writer.result()
    assert read()[0] == {str(i): str(i) for i in range(10)}


def test_the_later_of_two_entries_of_one_name_is_kept_whoever_writes_next(connect, folder, read):
    for digit in (1, 2, 3):
        connect().record(BUCKET, {f"{folder}/x": entry(digit)})
    connect().record(BUCKET, {f"{folder}/y": entry(4), f"{folder}/z": entry(5)})
    assert read()[0] == {"x": "3", "y": "4", "z": "5"}


def test_notes_of_single_entries_that_the_manifest_has_are_not_read(
    connect, folder, proxied, proxy, read, monkeypatch
):
    for digit in range(5):
        connect().record(BUCKET, {f"{folder}/{digit}": entry(digit)})
    read_notes = []
    fetch = manifest_notes.ManifestNotes._fetch
    monkeypatch.setattr(
        manifest_notes.ManifestNotes,
        "_fetch",
        lambda self, key: read_notes.append(key) or fetch(self, key),
    )
    connect().record(BUCKET, {f"{folder}/5": entry(5)})
    assert (len(read()[0]), read_notes) == (6, [])
    connect().record(BUCKET, {f"{folder}/6": entry(6), f"{folder}/7": entry(7)})
    connect().record(BUCKET, {f"{folder}/8": entry(8)})
    assert (len(read()[0]), len(read_notes)) == (9, 1)


def test_old_notes_go_and_what_is_none_is_left_alone(connect, folder, read, s3_client, monkeypatch):
    s3_client.put_object(Bucket=BUCKET, Key=f"{folder}/manifest.json.d/1-x.json", Body=b"[1]")
    connect().record(BUCKET, {f"{folder}/a": entry(1)})
    assert read() == ({"a": "1"}, 2)
    monkeypatch.setattr(manifest_notes, "LASTS", timedelta(seconds=-1))
    connect().record(BUCKET, {f"{folder}/b": entry(2)})
    assert read() == ({"a": "1", "b": "2"}, 0)


def test_who_may_not_list_still_records_his_own(connect, folder, read, monkeypatch, caplog):
    def refused(self, *_):
        raise ObjectUnavailable("s3://…: refused")

    store = connect()
    store.record(BUCKET, {f"{folder}/a": entry(1)})
    monkeypatch.setattr(store._client, "get_paginator", refused)
    store.record(BUCKET, {f"{folder}/b": entry(2)})
    assert read()[0] == {"a": "1", "b": "2"}
    assert "the manifest is right if nobody else uploads there now" in caplog.text
