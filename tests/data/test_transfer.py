"""Downloads: what arrives, what is reused, and what is published."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.data.objects import (
    BUCKET,
    CONTENT,
    FIRST_ONLY,
    MIB,
    SHA256,
    leftovers,
    manifest_key,
    replace_object,
    without_blocks,
)
from ups.data.transfer import download
from ups.errors import ChecksumMismatch, DiskFull, FetchError


@pytest.mark.parametrize("num_threads", [1, 3, 8])
def test_a_download_equals_the_object_tells_its_progress_and_transfers_no_body_again(
    fetch, proxy, dest, num_threads, caplog
):
    caplog.set_level(logging.INFO, "ups.data.transfer")
    proxy.faults.delay_s, seen = 0.01, []
    result = fetch(num_threads=num_threads, progress=lambda *counts: seen.append(counts))
    assert seen == sorted(seen)
    assert len(seen) > 1
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert dest.read_bytes() == CONTENT
    assert (result.path, result.sha256, result.num_bytes) == (dest, SHA256, len(CONTENT))
    assert (result.reused, result.resumed_bytes) == (False, 0)
    assert leftovers(dest) == [".x.h5.stamp", "x.h5"]
    assert "5.26 MB in" in caplog.text
    assert "sha256 verified against the manifest" in caplog.text
    proxy.ranges.clear()
    second = fetch(num_threads=num_threads)
    assert (second.reused, second.sha256, proxy.ranges) == (True, SHA256, [])


def test_an_empty_object_is_an_empty_file(store, tmp_path, dest):
    replace_object(store, "empty/x.h5", b"", tmp_path)
    result = download(store, BUCKET, "empty/x.h5", dest)
    assert (dest.read_bytes(), result.num_bytes) == (b"", 0)


def test_a_file_without_a_stamp_is_hashed_once(fetch, proxy, dest, monkeypatch):
    hashed = []
    monkeypatch.setattr(
        "ups.data.transfer.hash_file", lambda path, _: hashed.append(path) or SHA256
    )
    dest.parent.mkdir()
    dest.write_bytes(CONTENT)
    assert fetch().reused
    assert fetch().reused
    assert hashed == [dest]
    assert proxy.ranges == []


def test_a_file_changed_in_place_is_noticed_although_its_time_was_put_back(fetch, dest, flip_bit):
    fetch()
    flip_bit(dest, 0)
    assert not fetch().reused
    assert dest.read_bytes() == CONTENT


@pytest.mark.parametrize("older", ["from before a reboot", "without a check", "after a chmod"])
def test_a_stamp_that_proves_less_says_what_the_file_must_hash_to_once(
    fetch, s3_client, own_key, proxy, dest, monkeypatch, older
):
    s3_client.delete_object(Bucket=BUCKET, Key=manifest_key(own_key))
    fetch(own_key)
    stamp = dest.parent / ".x.h5.stamp"
    if older == "after a chmod":
        dest.chmod(0o600)
    else:
        fields = json.loads(stamp.read_text())
        del fields["check"], fields["ctime_ns"]
        fields["etag"], _, _ = fields["etag"].partition(" modified")
        if older == "from before a reboot":
            fields["boot_id"] = "another"
        stamp.write_text(json.dumps(fields))
    hashed = []
    monkeypatch.setattr(
        "ups.data.transfer.hash_file", lambda path, _: hashed.append(path) or SHA256
    )
    proxy.ranges.clear()
    assert fetch(own_key).reused
    assert fetch(own_key).reused
    assert hashed == [dest]
    assert proxy.ranges == []


def test_a_truncated_file_and_a_changed_object_are_fetched_again(
    fetch, store, own_key, dest, tmp_path
):
    fetch(own_key)
    os.truncate(dest, 1000)
    assert not fetch(own_key).reused
    assert dest.read_bytes() == CONTENT
    replace_object(store, own_key, CONTENT[::-1], tmp_path)
    assert not fetch(own_key).reused
    assert dest.read_bytes() == CONTENT[::-1]


def test_an_object_without_a_manifest_is_recognised_by_its_etag(
    fetch, s3_client, store, own_key, dest, proxy, tmp_path, caplog
):
    caplog.set_level(logging.INFO, "ups.data.transfer")
    s3_client.delete_object(Bucket=BUCKET, Key=manifest_key(own_key))
    assert fetch(own_key).sha256 == SHA256
    assert "MD5 verified against the ETag" in caplog.text
    proxy.ranges.clear()
    assert fetch(own_key).reused
    assert proxy.ranges == []
    replace_object(store, own_key, CONTENT[::-1], tmp_path)
    s3_client.delete_object(Bucket=BUCKET, Key=manifest_key(own_key))
    assert not fetch(own_key).reused
    assert dest.read_bytes() == CONTENT[::-1]


def test_a_verified_file_is_used_while_the_store_is_down(fetch, connect, key, dest, caplog):
    fetch()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        down = connect(f"http://127.0.0.1:{closed.getsockname()[1]}")
        assert download(down, BUCKET, key, dest).reused
        assert "as verified earlier, not compared anew" in caplog.text
        with pytest.raises(FetchError, match="gave up after 4 attempts"):
            download(down, BUCKET, key, dest.with_name("other.h5"))


def test_two_threads_that_want_the_same_file_fetch_it_once(fetch, proxy):
    proxy.faults.delay_s = 0.005
    with ThreadPoolExecutor(2) as pool:
        results = [task.result() for task in [pool.submit(fetch) for _ in range(2)]]
    assert sorted(result.reused for result in results) == [False, True]
    assert len(proxy.ranges) == 6


def test_a_download_survives_busy_answers_resets_short_bodies_and_then_a_corrupted_one(
    fetch, proxy, dest, caplog
):
    proxy.faults.answer_503 = proxy.faults.reset = proxy.faults.truncate = 3
    assert fetch(num_threads=4).sha256 == SHA256
    assert dest.read_bytes() == CONTENT
    assert proxy.faults.answer_503 == proxy.faults.reset == proxy.faults.truncate == 0
    dest.unlink()
    proxy.faults.corrupt = 1
    assert fetch().sha256 == SHA256
    assert dest.read_bytes() == CONTENT
    assert "starting over, once" in caplog.text


@pytest.mark.parametrize("has_blocks", [True, False])
def test_a_wrong_checksum_publishes_nothing_and_leaves_the_file_of_before(
    fetch, proxy, s3_client, own_key, dest, has_blocks
):
    proxy.faults.corrupt = 10**6
    if not has_blocks:
        without_blocks(s3_client, own_key)
    found = "XXH3 .* by the manifest" if has_blocks else f"sha256 .*, expected {SHA256}"
    message = f"{found}; the partial file was removed"
    with pytest.raises(ChecksumMismatch, match=message):
        fetch(own_key)
    assert len(proxy.ranges) < 12 if has_blocks else len(proxy.ranges) == 12
    assert leftovers(dest) == []
    dest.write_bytes(b"earlier")
    with pytest.raises(ChecksumMismatch, match=message):
        fetch(own_key)
    assert dest.read_bytes() == b"earlier"


def test_a_full_disk_is_noticed_before_the_transfer(fetch, proxy, dest, monkeypatch):
    usage = shutil.disk_usage(dest.parents[1])._replace(free=66 * MIB)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DiskFull, match=r"needs 5 MB in .*, found 69 MB free .* PDEBENCH_ROOT"):
        fetch()
    assert proxy.ranges == FIRST_ONLY
    assert leftovers(dest) == []
