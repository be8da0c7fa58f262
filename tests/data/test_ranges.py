"""Objects fetched in ranges: in which order, resumed, stopped, and tried again."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

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
    stop_after,
)
from tests.live import wait_until
from ups.background import Background
from ups.data.cuts import Want, cut
from ups.data.ranges import RangedFetch, start_fetching
from ups.data.stamps import beside
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
    arrived = RangedFetch(store, info, dest, 1, MIB).resumed_bytes
    assert arrived > 2 * MIB
    for _ in range(200):
        at, bit = rng.randrange(len(text)), 1 << rng.randrange(8)
        journal.write_bytes(text[:at] + bytes([text[at] ^ bit]) + text[at + 1 :])
        found = RangedFetch(store, info, dest, 1, MIB)
        ends = [at + n for at, n in zip(found.starts, found.filled, strict=True) if n]
        assert max(ends, default=0) <= arrived
    head, *lines = text.splitlines()
    unchecked = [line.rpartition(b" ")[0] for line in lines]  # as they were written before
    older_head = json.dumps({**json.loads(head), "etag": info.version.etag}).encode()
    journal.write_bytes(b"\n".join([older_head, *unchecked, b""]))
    assert fetch(own_key).resumed_bytes == arrived


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
    def change_at_the_third(_path):
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


@pytest.fixture
def ranged(proxied, proxy, key, dest):
    """`ranged(**options)`: a fetch of the object through the proxy, by one thread."""
    info = proxied.head(BUCKET, key)

    def make(range_bytes=MIB, **options):
        dest.parent.mkdir(exist_ok=True)
        return RangedFetch(proxied, info, dest, 1, range_bytes, **options)

    return make


@contextmanager
def fetching(fetch):
    with fetch.opened():
        start_fetching([fetch], 1)
        yield


def asked(proxy):
    """[start, end) of each range that was asked for."""
    bounds = [header.removeprefix("bytes=").split("-") for header in proxy.ranges]
    return [(int(first), int(last) + 1) for first, last in bounds]


def test_what_is_wanted_first_comes_first_in_short_ranges_and_the_rest_in_the_files_order(
    ranged, proxy
):
    late = Want(2, 0, 1000)
    wants = [late, Want(1, 2 * MIB, 4 * MIB + 5), Want(0, 5 * MIB, 5 * MIB + 100)]
    assert ranged(16 * MIB, wants=wants).run(None, None) == SHA256
    assert asked(proxy) == [
        (5 * MIB, 5 * MIB + 100),
        (2 * MIB, 3 * MIB),
        (3 * MIB, 4 * MIB),
        (4 * MIB, 4 * MIB + 5),
        (0, 1000),
        (1000, 2 * MIB),
        (4 * MIB + 5, 5 * MIB),
        (5 * MIB + 100, len(CONTENT)),
    ]


def test_ranges_begin_with_a_block_but_for_the_first_of_what_is_wanted():
    wants = [Want(0, 5 * MIB + 7, 8 * MIB + 9), Want(1, 11 * MIB + 1, 12 * MIB + 1)]
    starts, _ = cut(40 * MIB, 4 * MIB, [(20 * MIB + 1, 21 * MIB)], wants)
    bounds = (5 * MIB + 7, 8 * MIB + 9, 11 * MIB + 1, 12 * MIB + 1, 20 * MIB + 1)
    assert [at for at in starts if at % MIB] == list(bounds)


def test_bytes_that_are_waited_for_can_be_read_while_the_rest_is_on_its_way(ranged, proxy):
    proxy.faults.stall, proxy.faults.cut_after = threading.Event(), 3 * MIB
    fetch = ranged(16 * MIB)
    with fetching(fetch):
        wait_until(lambda: fetch.num_arrived >= 2 * MIB)
        assert fetch.partial.read_bytes()[: 2 * MIB] == CONTENT[: 2 * MIB]
        # A kill would leave what the journal says, and what was made of more would be doubtful.
        assert ranged(16 * MIB).resumed_bytes >= 2 * MIB
        proxy.faults.stall.set()
        fetch.wait(0, len(CONTENT))
    assert fetch.partial.read_bytes() == CONTENT


def test_who_waits_hears_of_a_stop_and_of_a_failure_but_not_for_what_is_there(ranged, proxy):
    proxy.faults.stall = threading.Event()
    fetch = ranged()
    with fetching(fetch):
        waiting = Background(lambda: fetch.wait(0, len(CONTENT)), "wait")
    with pytest.raises(Interrupted, match="stopped"):
        waiting.result()
    proxy.faults.stall.set()
    proxy.faults.stall = None
    proxy.ranges.clear()
    proxy.faults.on_range = lambda _: len(proxy.ranges) > 2
    fetch = ranged()
    with fetching(fetch):
        with pytest.raises(FetchError, match="gave up after 4 attempts"):
            fetch.wait(0, len(CONTENT))
        fetch.wait(0, 2 * MIB)
    assert 2 * MIB <= ranged().resumed_bytes < len(CONTENT)


def test_a_download_goes_on_from_another_cut_into_ranges(ranged, proxy, dest):
    first, proxy.faults.delay_s = ranged(), 0.01
    with pytest.raises(Interrupted):
        first.run(**stop_after(2 * MIB))
    left = ranged(700_000, wants=[Want(0, 3 * MIB + 7, 3 * MIB + 9)])
    proxy.ranges.clear()
    assert left.run(None, None) == SHA256
    assert sum(end - start for start, end in asked(proxy)) == len(CONTENT) - left.resumed_bytes
    assert left.resumed_bytes >= 2 * MIB
    assert (left.token, left.partial.read_bytes()) == (first.token, CONTENT)


def test_a_journal_that_notes_ranges_by_their_number_is_read(ranged, proxy, dest):
    fetch = ranged()
    arrived = [(0, MIB), (MIB, 2 * MIB), (3 * MIB, 3 * MIB + 500_000)]
    partial = bytearray(len(CONTENT))
    for start, end in arrived:
        partial[start:end] = CONTENT[start:end]
    fetch.partial.write_bytes(partial)
    head = {name: value for name, value in fetch.journal.head().items() if name != "token"}
    lines = [json.dumps({**head, "range_bytes": MIB}), f"0 {MIB}", f"1 {MIB}", "3 500000"]
    beside(dest, "journal").write_text("\n".join([*lines, ""]))
    again = ranged(16 * MIB)
    assert again.run(None, None) == SHA256
    assert again.resumed_bytes == 2 * MIB + 500_000
    assert asked(proxy) == [(2 * MIB, 3 * MIB), (3 * MIB + 500_000, len(CONTENT))]


def test_the_token_is_of_the_bytes_that_one_boot_has_seen_arrive(ranged, proxy, monkeypatch):
    first, proxy.faults.delay_s = ranged(), 0.01
    with pytest.raises(Interrupted):
        first.run(**stop_after(MIB))
    assert ranged().token == first.token
    monkeypatch.setattr("ups.data.fetch_journal.boot_id", lambda: "after a power cut")
    rebooted = ranged()
    assert rebooted.resumed_bytes > MIB
    assert rebooted.token != first.token
    rebooted.discard()
    assert ranged().token not in (first.token, rebooted.token)
