from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.live import wait_until
from ups.data.objectstore import ObjectStore
from ups.data.ranges import RangedFetch
from ups.data.s3errors import Retry
from ups.data.stamps import read_stamp, write_stamp
from ups.data.transfer import download
from ups.errors import (
    ChecksumMismatch,
    ConfigError,
    DataError,
    DiskFull,
    FetchError,
    Interrupted,
    ObjectUnavailable,
)

MIB = 1 << 20
BUCKET = "pdebench"
QUICK = Retry(attempts=4, first_wait_s=0.01, max_wait_s=0.02, lasting_s=0)
CONTENT = random.Random(0).randbytes(5 * MIB + 12_345)  # six ranges, the last one short
SHA256 = hashlib.sha256(CONTENT).hexdigest()
FIRST_ONLY = [f"bytes=0-{MIB - 1}"]  # asked for before the size is known


@pytest.fixture(scope="module", autouse=True)
def environment(s3):
    with s3.used():
        yield


@pytest.fixture(scope="module")
def store():
    with closing(ObjectStore(retry=QUICK)) as store:
        yield store


@pytest.fixture(scope="module")
def proxied(proxy_handler):
    with closing(ObjectStore(proxy_handler.proxy.url, retry=QUICK)) as store:
        yield store


@pytest.fixture
def connect():
    """Stores that retry quickly, closed when the test ends."""
    with ExitStack() as stack:
        yield lambda url=None: stack.enter_context(closing(ObjectStore(url, retry=QUICK)))


@pytest.fixture(scope="module")
def key(store, tmp_path_factory):
    """An object with a manifest, which stays as it is."""
    source = tmp_path_factory.mktemp("source") / "x.h5"
    source.write_bytes(CONTENT)
    store.upload(source, BUCKET, "shared/x.h5")
    return "shared/x.h5"


@pytest.fixture
def own_key(key, s3_client, request):
    """A copy of it that a test may change."""
    own = f"{request.node.name}/x.h5"
    for source, target in ((key, own), (manifest_key(key), manifest_key(own))):
        s3_client.copy_object(Bucket=BUCKET, Key=target, CopySource=f"{BUCKET}/{source}")
    return own


@pytest.fixture
def dest(tmp_path):
    return tmp_path / "data" / "x.h5"


@pytest.fixture
def fetch(proxied, proxy, key, dest):
    """Download an object through the proxy in ranges of 1 MiB."""

    def fetch(key=key, **options):
        return download(proxied, BUCKET, key, dest, **{"range_bytes": MIB, **options})

    return fetch


def replace_object(store, key, content, tmp_path):
    changed = tmp_path / "changed.bin"
    changed.write_bytes(content)
    return store.upload(changed, BUCKET, key)


def manifest_key(key):
    return key.replace("x.h5", "manifest.json")


def stop_after(num_bytes):
    """Options that stop a download when so much has arrived."""
    stop = threading.Event()
    return {"stop": stop, "progress": lambda done, _: stop.set() if done > num_bytes else None}


def leftovers(dest):
    return sorted(path.name for path in dest.parent.iterdir() if not path.name.endswith(".lock"))


# What arrives


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


@pytest.mark.parametrize("num_threads", [1, None])
def test_the_first_range_is_asked_for_first_none_twice_and_by_one_thread_in_order(
    fetch, proxy, num_threads
):
    fetch(num_threads=num_threads)
    assert proxy.ranges[:1] == FIRST_ONLY
    starts = [int(asked.removeprefix("bytes=").split("-")[0]) for asked in proxy.ranges]
    assert (starts if num_threads == 1 else sorted(starts)) == [i * MIB for i in range(6)]


def test_an_empty_object_is_an_empty_file(store, tmp_path, dest):
    replace_object(store, "empty/x.h5", b"", tmp_path)
    result = download(store, BUCKET, "empty/x.h5", dest)
    assert (dest.read_bytes(), result.num_bytes) == (b"", 0)


def test_upload_creates_the_bucket_and_keeps_other_entries_of_the_manifest(store, s3, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    seen = []
    store.upload(tmp_path / "a", "new-bucket", "p/a", lambda *args: seen.append(args))
    info = store.upload(tmp_path / "b", "new-bucket", "p/b")
    manifest = json.loads((s3.directory / "new-bucket" / "p" / "manifest.json").read_text())
    assert manifest["a"] == {"sha256": hashlib.sha256(b"a").hexdigest(), "bytes": 1}
    assert info.sha256 == manifest["b"]["sha256"]
    assert seen[-1] == (1, 1)
    assert store.exists("new-bucket", "p/a")
    assert not store.exists("new-bucket", "p/c")
    assert not store.exists("no-such-bucket", "p/a")


def test_a_large_file_is_uploaded_in_parts(store, s3, tmp_path):
    with (tmp_path / "large").open("wb") as file:
        file.truncate(65 * MIB)
    info = store.upload(tmp_path / "large", BUCKET, "large/x.h5")
    assert info.num_bytes == 65 * MIB
    assert (s3.directory / BUCKET / "large" / "x.h5").stat().st_size == 65 * MIB


# What is reused


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


def test_a_damaged_stamp_is_none(dest):
    dest.parent.mkdir()
    dest.write_bytes(CONTENT)
    write_stamp(dest, dest.stat(), SHA256, etag='"1"')
    stamp = dest.parent / ".x.h5.stamp"
    text = stamp.read_bytes()
    assert read_stamp(dest).sha256 == SHA256
    rng = random.Random(0)
    for _ in range(300):
        at, bit = rng.randrange(len(text)), 1 << rng.randrange(8)
        stamp.write_bytes(text[:at] + bytes([text[at] ^ bit]) + text[at + 1 :])
        assert read_stamp(dest) is None
    stamp.write_bytes(text[: len(text) // 2])
    assert read_stamp(dest) is None


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


def test_a_manifest_is_read_once_per_store(connect, s3_client, own_key):
    store = connect()
    assert store.head(BUCKET, own_key).sha256 == SHA256
    s3_client.delete_object(Bucket=BUCKET, Key=manifest_key(own_key))
    assert store.head(BUCKET, own_key).sha256 == SHA256
    assert store.head(BUCKET, own_key, fresh=True).sha256 is None


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


# What is resumed


def test_a_killed_download_resumes_at_the_missing_ranges(fetch, proxy, key, dest):
    proxy.faults.delay_s = 0.02
    script = (
        "import sys; from pathlib import Path\n"
        "from ups.data.objectstore import ObjectStore; from ups.data.transfer import download\n"
        "url, bucket, key, dest = sys.argv[1:]\n"
        "download(ObjectStore(url), bucket, key, Path(dest), num_threads=2, range_bytes=1 << 20)\n"
    )
    arguments = [sys.executable, "-c", script, proxy.url, BUCKET, key, str(dest)]
    child = subprocess.Popen(arguments, cwd=Path(__file__).parents[2])
    journal = dest.parent / ".x.h5.journal"
    wait_until(lambda: journal.exists() and journal.read_text().count("\n") > 2, 20, 0.005)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not dest.exists()
    proxy.faults.delay_s = 0
    proxy.ranges.clear()
    result = fetch()
    assert dest.read_bytes() == CONTENT
    assert result.resumed_bytes >= 2 * MIB
    assert len(proxy.ranges) == 6 - result.resumed_bytes // MIB
    assert leftovers(dest) == [".x.h5.stamp", "x.h5"]


def test_stop_leaves_a_partial_file_of_which_nothing_is_fetched_again(fetch, proxy, dest):
    proxy.faults.delay_s = 0.01
    with pytest.raises(Interrupted, match="the next download goes on from there"):
        fetch(num_threads=3, **stop_after(2 * MIB))
    assert not dest.exists()
    for thread in threading.enumerate():
        if thread.name.startswith("fetch "):
            thread.join()  # one may have been asking for its next range
    proxy.ranges.clear()
    result = fetch()
    assert dest.read_bytes() == CONTENT
    assert result.resumed_bytes > 2 * MIB
    bounds = [header.removeprefix("bytes=").split("-") for header in proxy.ranges]
    assert sum(int(last) + 1 - int(first) for first, last in bounds) == (
        len(CONTENT) - result.resumed_bytes
    )


def test_stop_does_not_wait_for_a_stalled_store(fetch, proxy):
    stop, proxy.faults.stall = threading.Event(), threading.Event()
    timer = threading.Timer(0.3, stop.set)
    timer.start()
    started = time.monotonic()
    with pytest.raises(Interrupted, match="stopped after"):
        fetch(stop=stop)
    assert time.monotonic() - started < 3
    proxy.faults.stall.set()
    timer.join()


def test_a_damaged_journal_never_says_that_more_has_arrived(
    fetch, proxy, connect, s3_client, own_key, dest
):
    s3_client.delete_object(Bucket=BUCKET, Key=manifest_key(own_key))
    proxy.faults.delay_s = 0.01
    with pytest.raises(Interrupted, match="stopped after"):
        fetch(own_key, num_threads=1, **stop_after(2 * MIB))
    journal, store, rng = dest.parent / ".x.h5.journal", connect(), random.Random(0)
    info, text = store.head(BUCKET, own_key), journal.read_bytes()
    arrived = RangedFetch(store, info, dest, 1, MIB)._filled
    assert sum(arrived) > 2 * MIB
    for _ in range(200):
        at, bit = rng.randrange(len(text)), 1 << rng.randrange(8)
        journal.write_bytes(text[:at] + bytes([text[at] ^ bit]) + text[at + 1 :])
        found = RangedFetch(store, info, dest, 1, MIB)._filled
        assert all(few <= filled for few, filled in zip(found, arrived, strict=True))
    head, *lines = text.splitlines()
    unchecked = [line.rpartition(b" ")[0] for line in lines]  # as they were written before
    older_head = json.dumps({**json.loads(head), "etag": info.version.etag}).encode()
    journal.write_bytes(b"\n".join([older_head, *unchecked, b""]))
    assert fetch(own_key).resumed_bytes == sum(arrived)


def test_an_object_that_changed_since_is_not_resumed(
    fetch, proxy, store, s3_client, own_key, dest, tmp_path
):
    s3_client.delete_object(Bucket=BUCKET, Key=manifest_key(own_key))  # no digest would tell
    proxy.faults.delay_s = 0.01
    with pytest.raises(Interrupted, match="stopped after"):
        fetch(own_key, num_threads=1, **stop_after(2 * MIB))
    replace_object(store, own_key, CONTENT[::-1], tmp_path)
    s3_client.delete_object(Bucket=BUCKET, Key=manifest_key(own_key))
    proxy.faults.delay_s = 0
    result = fetch(own_key)
    assert result.resumed_bytes == 0
    assert dest.read_bytes() == CONTENT[::-1]


def test_an_object_that_changes_midway_is_started_over(
    fetch, proxy, store, own_key, dest, tmp_path
):
    def change_at_the_third():
        if len(proxy.ranges) == 3:
            replace_object(store, own_key, CONTENT[::-1], tmp_path)

    proxy.faults.on_range = change_at_the_third
    result = fetch(own_key, num_threads=1)
    assert dest.read_bytes() == CONTENT[::-1]
    assert result.resumed_bytes == 0


# What goes wrong


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


def test_a_cut_range_goes_on_where_it_was_cut(fetch, proxy):
    proxy.faults.truncate, proxy.faults.cut_after = 8, 100_000  # more cuts than attempts
    fetch(num_threads=1)
    assert "bytes=100000-1048575" in proxy.ranges
    assert "bytes=800000-1048575" in proxy.ranges


def test_it_gives_up_after_the_attempts_and_says_why(fetch, proxy, dest):
    proxy.faults.answer_503 = 10**6
    with pytest.raises(
        FetchError,
        match=r"gave up after 4 attempts; .*SlowDown \(HTTP 503\): busy\. Check that http",
    ):
        fetch(num_threads=1)
    assert len(proxy.ranges) == 4
    assert not dest.exists()


def test_a_wrong_checksum_publishes_nothing_and_leaves_the_file_of_before(fetch, proxy, dest):
    proxy.faults.corrupt = 10**6
    message = f"expected {SHA256}; the partial file was removed"
    with pytest.raises(ChecksumMismatch, match=message):
        fetch()
    assert len(proxy.ranges) == 12
    assert leftovers(dest) == []
    dest.write_bytes(b"earlier")
    with pytest.raises(ChecksumMismatch, match=message):
        fetch()
    assert dest.read_bytes() == b"earlier"


def test_a_full_disk_is_noticed_before_the_transfer(fetch, proxy, dest, monkeypatch):
    usage = shutil.disk_usage(dest.parents[1])._replace(free=66 * MIB)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DiskFull, match=r"needs 5 MB in .*, found 69 MB free .* PDEBENCH_ROOT"):
        fetch()
    assert proxy.ranges == FIRST_ONLY
    assert leftovers(dest) == []


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
    with pytest.raises(ObjectUnavailable, match=r"no such key at http.*; found .*/x\.h5"):
        download(store, BUCKET, key.replace("x.h5", "y.h5"), dest)
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
