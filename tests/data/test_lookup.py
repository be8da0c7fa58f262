"""Many objects are asked about by one listing; where that does not tell all, by a HEAD of each."""

import json
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from botocore.exceptions import ClientError

from tests.data.objects import BUCKET, replace_object
from ups.background import Background
from ups.data import lookup, objectstore
from ups.data.listing import list_objects
from ups.data.lookup import look_up
from ups.data.transfer import download, reuse

NUM = lookup.LEAST
KEYS = [f"listing/part-{i:02}.h5" for i in range(NUM)]
PLACES = [(BUCKET, key) for key in KEYS]


@pytest.fixture(scope="module", autouse=True)
def objects(store, tmp_path_factory):
    """As many small objects with a manifest as are worth a listing, and one that has none."""
    file = tmp_path_factory.mktemp("objects") / "x.h5"
    for i, key in enumerate(KEYS):
        file.write_bytes(bytes([i]) * (1000 + i))
        store.upload(file, BUCKET, key)
    store._client.put_object(Bucket=BUCKET, Key="listing/other.h5", Body=b"other")


@pytest.fixture
def asked(proxy):
    """The methods of all requests from now on."""
    methods = []
    proxy.faults.edit = lambda method, _: methods.append(method)
    return methods


@pytest.fixture
def edited(monkeypatch):
    """`edited(**fields)`: the first object's entry of each listing has these."""

    def edit(**fields):
        def listed(*args):
            found = list_objects(*args)
            return found | {KEYS[0]: found[KEYS[0]] | fields}

        monkeypatch.setattr(objectstore, "list_objects", listed)

    return edit


def test_a_listing_says_what_a_head_of_each_says_but_for_the_md5(connect, proxy, asked):
    found = look_up(connect(proxy.url), PLACES, None)
    assert asked == ["GET", "GET"], "the listing and the manifest, whatever the number of objects"
    assert list(found) == PLACES
    heads = {place: replace(connect().head(*place), md5=None) for place in PLACES}
    versions = {place: heads[place].version for place in PLACES}
    assert all(found[place].version.is_of(versions[place]) for place in PLACES)
    assert [replace(found[place], version=versions[place]) for place in PLACES] == [*heads.values()]


def test_what_is_here_is_known_without_a_request_for_each(connect, proxy, asked, tmp_path):
    store = connect(proxy.url)
    done = [download(store, *place, tmp_path / place[1]) for place in PLACES]
    asked.clear()
    found = look_up(store, PLACES, None)
    again = [reuse(store, *p, tmp_path / p[1], listed=found.get(p)) for p in PLACES]
    assert asked == ["GET"]
    assert [(d.sha256, d.reused, d.is_verified) for d in again] == [
        (d.sha256, True, True) for d in done
    ]


def test_an_object_that_changed_is_told_though_the_manifest_was_read_before(
    connect, store, tmp_path
):
    place, another = PLACES[0], connect()
    download(another, *place, tmp_path / "x.h5")
    replace_object(store, place[1], b"y" * 1000, tmp_path)  # of the same size
    found = look_up(another, PLACES, None)[place]
    assert reuse(another, *place, tmp_path / "x.h5", listed=found) is None
    assert reuse(another, *place, tmp_path / "x.h5") is None


@pytest.mark.parametrize(
    "fields", [{"Size": 1}, {"StorageClass": "GLACIER"}, {"ETag": "", "LastModified": None}]
)
def test_what_a_listing_leaves_open_is_left_out(connect, edited, fields):
    edited(**fields)
    assert look_up(connect(), PLACES, None).keys() == set(PLACES[1:])


def test_objects_without_a_digest_in_the_manifest_are_left_out(connect):
    other = BUCKET, "listing/other.h5"
    assert look_up(connect(), [*PLACES, other], None).keys() == set(PLACES)


def test_few_objects_of_a_folder_are_not_listed(connect, proxy, asked):
    elsewhere = [(BUCKET, f"elsewhere/{i}.h5") for i in range(NUM - 1)]
    assert look_up(connect(proxy.url), [*PLACES[1:], *elsewhere], None) == {}
    assert asked == []


def test_a_store_that_lists_nothing_is_asked_about_each(connect, monkeypatch, caplog):
    def refuse(*_):
        raise ClientError({"Error": {"Code": "AccessDenied"}}, "ListObjectsV2")

    monkeypatch.setattr(objectstore, "list_objects", refuse)
    caplog.set_level("INFO")
    assert look_up(connect(), PLACES, None) == {}
    assert f"each of {NUM} objects is asked about" in caplog.text
    assert "AccessDenied" in caplog.text


def test_a_manifest_that_is_none_is_left_to_the_heads_to_tell(connect, s3_client):
    place = {"Bucket": BUCKET, "Key": "listing/manifest.json"}
    before = s3_client.get_object(**place)["Body"].read()
    assert json.loads(before)
    s3_client.put_object(**place, Body=b"[]")
    try:
        assert look_up(connect(), PLACES, None) == {}
    finally:
        s3_client.put_object(**place, Body=before)


def test_a_slow_listing_is_not_waited_for_and_a_stop_ends_the_wait(connect, monkeypatch):
    over, stop = threading.Event(), threading.Event()
    monkeypatch.setattr(objectstore, "list_objects", lambda *_: over.wait(20) and {})
    monkeypatch.setattr(lookup, "PATIENCE_S", 0.1)
    assert look_up(connect(), PLACES, stop) == {}
    monkeypatch.setattr(lookup, "PATIENCE_S", 20)
    waiting, started = (
        Background(lambda: look_up(connect(), PLACES, stop), "wait"),
        time.monotonic(),
    )
    stop.set()
    assert waiting.result() == {}
    assert time.monotonic() - started < 10
    over.set()


def test_where_many_others_stand_between_them_only_a_few_pages_are_read():
    pages, wanted = [], [f"a/{i:04}/x.h5" for i in range(0, 3000, 15)]

    def paginate(**asked):
        assert asked == {"Bucket": "b", "Prefix": "a/", "Delimiter": "/"}
        for first in range(0, 10_000, 1000):
            pages.append(first)
            keys = [f"a/{i:04}/x.h5" for i in range(first, first + 1000)]
            yield {"Contents": [{"Key": key} for key in keys]}
        raise AssertionError("all were found")

    client = SimpleNamespace(get_paginator=lambda _: SimpleNamespace(paginate=paginate))
    assert list(list_objects(client, "b", wanted)) == wanted
    assert pages == [0, 1000, 2000]
    pages.clear()
    assert list(list_objects(client, "b", wanted[100:150])) == []
    assert pages == [0]
