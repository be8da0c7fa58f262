"""Objects fetched in ranges: in which order, resumed, stopped, and tried again."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.data.objects import (
    BUCKET,
    CONTENT,
    FIRST_ONLY,
    MIB,
    leftovers,
    manifest_key,
    replace_object,
    stop_after,
)
from tests.live import wait_until
from ups.data.ranges import RangedFetch
from ups.errors import FetchError, Interrupted


@pytest.mark.parametrize("num_threads", [1, None])
def test_the_first_range_is_asked_for_first_none_twice_and_by_one_thread_in_order(
    fetch, proxy, num_threads
):
    fetch(num_threads=num_threads)
    assert proxy.ranges[:1] == FIRST_ONLY
    starts = [int(asked.removeprefix("bytes=").split("-")[0]) for asked in proxy.ranges]
    assert (starts if num_threads == 1 else sorted(starts)) == [i * MIB for i in range(6)]


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
