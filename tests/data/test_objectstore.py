"""The store itself: uploads, manifests, what is missing and what is refused."""

from __future__ import annotations

import base64
import hashlib
import json
from unittest.mock import Mock

import pytest
import xxhash
from botocore.loaders import JSONFileLoader

from tests.data.objects import BUCKET, FIRST_ONLY, MIB, SHA256, manifest_key
from ups.data.s3errors import Retry
from ups.data.transfer import download
from ups.errors import ConfigError, DataError, FetchError, ObjectUnavailable


def test_upload_creates_the_bucket_and_keeps_other_entries_of_the_manifest(store, s3, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    seen = []
    store.upload(tmp_path / "a", "new-bucket", "p/a", lambda *args: seen.append(args))
    info = store.upload(tmp_path / "b", "new-bucket", "p/b")
    manifest = json.loads((s3.directory / "new-bucket" / "p" / "manifest.json").read_text())
    digests = base64.b64encode(xxhash.xxh3_64_digest(b"a")).decode()
    check = manifest["a"]["blocks"]["check"]
    assert manifest["a"] == {
        "sha256": hashlib.sha256(b"a").hexdigest(),
        "bytes": 1,
        "blocks": {"bytes": MIB, "xxh3_64": digests, "check": check},
    }
    assert info.sha256 == manifest["b"]["sha256"]
    assert seen[-1] == (1, 1)
    assert store.exists("new-bucket", "p/a")
    assert not store.exists("new-bucket", "p/c")
    assert not store.exists("no-such-bucket", "p/a")


def test_a_manifest_has_a_line_for_each_object_whatever_it_is_called(store, s3, tmp_path):
    names = ["d\\", "a", 'b}, "c']
    for name in names:
        (tmp_path / "file").write_text(name)
        store.upload(tmp_path / "file", BUCKET, f"lines/{name}")
    text = (s3.directory / BUCKET / "lines" / "manifest.json").read_text()
    assert list(json.loads(text)) == sorted(names)
    assert len(text.splitlines()) == len(names)


def test_a_large_file_is_uploaded_in_parts(store, s3, tmp_path):
    with (tmp_path / "large").open("wb") as file:
        file.truncate(65 * MIB)
    info = store.upload(tmp_path / "large", BUCKET, "large/x.h5")
    assert info.num_bytes == 65 * MIB
    assert (s3.directory / BUCKET / "large" / "x.h5").stat().st_size == 65 * MIB


def test_a_manifest_is_read_once_per_store(connect, s3_client, own_key):
    store = connect()
    assert store.head(BUCKET, own_key).sha256 == SHA256
    s3_client.delete_object(Bucket=BUCKET, Key=manifest_key(own_key))
    assert store.head(BUCKET, own_key).sha256 == SHA256
    assert store.head(BUCKET, own_key, fresh=True).sha256 is None


def test_an_object_that_is_not_what_its_manifest_says_is_not_fetched(
    fetch, s3_client, proxy, own_key, connect
):
    def put_manifest(content):
        body = json.dumps(content).encode()
        s3_client.put_object(Bucket=BUCKET, Key=manifest_key(own_key), Body=body)

    put_manifest({"x.h5": {"sha256": SHA256, "bytes": 7}})
    with pytest.raises(FetchError, match="5255225 bytes, but its manifest says 7"):
        fetch(own_key)
    put_manifest([])
    with pytest.raises(DataError, match=r"manifest.json is no manifest .* expected"):
        connect().head(BUCKET, own_key)
    assert proxy.ranges == FIRST_ONLY


def test_a_missing_key_is_named_with_what_is_there_and_told_from_a_missing_bucket(store, key, dest):
    with pytest.raises(ObjectUnavailable, match=r"no such key at http.*; found .*/x\.h5") as info:
        download(store, BUCKET, key.replace("x.h5", "y.h5"), dest)
    assert "manifest.json.d" not in str(info.value)  # the notes beside the manifest
    missing_bucket = r"s3://nowhere/x.h5: no such bucket .*data\.bucket"
    with pytest.raises(ObjectUnavailable, match=missing_bucket):
        download(store, "nowhere", "x.h5", dest)


def test_wrong_credentials_are_never_shown_and_missing_ones_asked_for(
    connect, key, dest, monkeypatch
):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    with pytest.raises(ObjectUnavailable, match=r"refuses access .* set AWS_ACCESS_KEY_ID") as info:
        download(connect(), BUCKET, key, dest)
    assert "not-the-secret" not in str(info.value)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(ObjectUnavailable, match=r"no credentials .* AWS_PROFILE"):
        download(connect(), BUCKET, "x.h5", dest)


def test_a_missing_profile_and_a_bad_endpoint_are_named(connect, monkeypatch):
    with pytest.raises(ConfigError, match=r"endpoint_url.*nonsense"):
        connect("nonsense")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(ObjectUnavailable, match=r"nobody.*AWS_PROFILE"):
        connect()


def test_waits_double_up_to_a_limit_and_vary():
    waits = [[Retry().wait_s(failures) for _ in range(50)] for failures in (1, 2, 9)]
    for longest, drawn in zip((0.5, 1, 8), waits, strict=True):
        assert longest / 2 <= min(drawn) < max(drawn) <= longest


def test_a_second_store_reads_no_description_of_s3_again(connect, monkeypatch):
    connect()
    monkeypatch.setattr(JSONFileLoader, "load_file", Mock(side_effect=AssertionError("read")))
    connect()
