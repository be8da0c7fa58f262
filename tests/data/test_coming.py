"""Objects on their way: their header at once, their rows as they come, the verdict in the end."""

from __future__ import annotations

import os
import threading
import time
from contextlib import closing

import h5py
import numpy as np
import pytest

from tests.data.objects import BUCKET, CONTENT, MIB, SHA256, leftovers, manifest_key, without_blocks
from tests.live import wait_until
from ups.background import Background
from ups.data.coming import ComingObject
from ups.data.cuts import Want
from ups.data.pdebench import TrajectoryFile
from ups.data.ranges import start_fetching
from ups.errors import CannotStream, ChecksumMismatch, DataError, FetchError, Interrupted
from ups.files import lock_now

TIMES = np.linspace(0, 1, 9)


@pytest.fixture
def come(proxied, proxy, key, dest):
    """`come(key)`: an object on its way through the proxy, not begun; closed in the end."""
    opened = []

    def make(key=key):
        opened.append(ComingObject(proxied, BUCKET, key, dest))
        return opened[-1]

    yield make
    for coming in opened:
        coming.close()


def begin(coming, wants=()):
    coming.plan(wants, 1)
    start_fetching([coming.begin()], 1)
    return coming


@pytest.fixture(scope="module")
def fields():
    return np.random.default_rng(0).standard_normal((64, 8, 256)).astype(np.float32)


@pytest.fixture(scope="module")
def field_key(store, fields, tmp_path_factory):
    """A file of fields, whose times come after them, in the bucket."""
    path = tmp_path_factory.mktemp("fields") / "x.h5"
    with h5py.File(path, "w") as file:
        file["tensor"], file["t-coordinate"], file.attrs["Nu"] = fields, TIMES, 0.01
    store.upload(path, BUCKET, "fields/x.h5")
    return "fields/x.h5"


@pytest.mark.parametrize("fault", [{}, {"truncate": 2}, {"reset": 2}])
def test_the_header_is_read_by_a_few_requests_over_a_bad_line_too(
    come, proxy, field_key, dest, fault
):
    proxy.faults.cut_after = 10_000
    for name, count in fault.items():
        setattr(proxy.faults, name, count)
    with TrajectoryFile(dest, coming=come(field_key)) as file:
        assert (file.num_trajectories, file.num_frames, file.parameter) == (64, 8, 0.01)
        assert file.dt == pytest.approx(1 / 8)
    assert len(proxy.ranges) == 2 + sum(fault.values())


def test_what_lies_across_blocks_is_read_as_it_is_by_one_request(come, proxy, field_key, fields):
    with h5py.File(come(field_key).header()) as file:
        before = len(proxy.ranges)
        assert (file["tensor"][1:63] == fields[1:63]).all()  # 8 blocks of 64 KiB
        assert len(proxy.ranges) == before + 1


def test_a_header_that_does_not_come_fails_as_a_transfer_does(come, proxy, field_key, dest):
    coming = come(field_key)
    proxy.faults.answer_503 = 10**6
    with pytest.raises(FetchError, match="gave up after 4 attempts"):
        TrajectoryFile(dest, coming=coming)


def test_rows_are_read_before_the_rest_is_there_and_are_those_of_the_file(
    come, proxy, field_key, fields, dest
):
    coming = come(field_key)
    file = TrajectoryFile(dest, (16, 64), coming=coming)
    begin(coming, [Want(0, *file.bytes_of(32, 40))])
    with closing(file):
        gate = threading.Event()
        proxy.faults.on_range = lambda _: len(proxy.ranges) > 3 and gate.wait(10) and None
        assert (file.read(32, 40) == fields[48:56]).all()
        assert coming.num_arrived < coming.num_bytes
        rest = Background(lambda: file.read(0, 48), "read")
        assert not rest.is_done(0.1)
        gate.set()
        assert (rest.result() == fields[16:]).all()
        assert coming.verdict(threading.Event(), None).sha256 == coming.sha256
        assert (file.read(0, 48) == fields[16:]).all()
    assert dest.stat().st_size == coming.num_bytes


def test_what_has_two_sizes_or_cannot_be_asked_for_by_ranges_does_not_stream(
    come, proxy, s3_client, own_key
):
    proxy.faults.whole = CONTENT
    with pytest.raises(CannotStream, match="knows no ranges"):
        come()
    proxy.faults.whole = None
    s3_client.delete_object(Bucket=BUCKET, Key=manifest_key(own_key))
    name = come(own_key).sha256
    assert name.startswith("provisional-")
    assert come(own_key).sha256 == name

    def other_size(method, headers):
        for header in headers if method == "HEAD" else ():
            if header.lower() == "content-length":
                headers[header] = "7"

    proxy.faults.edit = other_size
    with pytest.raises(CannotStream, match=f"has {len(CONTENT)} or 7 bytes, by GET or HEAD"):
        come(own_key)


def test_what_another_process_fetches_or_has_just_fetched_does_not_stream(come, dest):
    lock = lock_now(dest.parent / ".x.h5.lock")
    with pytest.raises(CannotStream, match="this process is fetching"):
        come().plan((), 1)
    os.close(lock)
    dest.touch()
    with pytest.raises(CannotStream, match="another process has just fetched"):
        come().plan((), 1)
    assert leftovers(dest) == ["x.h5"]


def test_what_a_stop_leaves_is_not_fetched_again_and_keeps_its_token(come, proxy, dest):
    proxy.faults.delay_s = 0.01
    first = begin(come())
    verdict = Background(lambda: first.verdict(threading.Event(), None), "verdict")
    wait_until(lambda: first.num_arrived > 2 * MIB)
    first.close()
    with pytest.raises(Interrupted, match="stopped"):
        verdict.result()
    with pytest.raises(Interrupted, match="stopped before all of it was there"):
        first.open()
    assert not dest.exists()
    second = begin(come())
    assert second.num_arrived >= first.num_arrived
    assert second.token == first.token
    done = second.verdict(threading.Event(), None)
    assert (done.sha256, done.resumed_bytes) == (SHA256, first.num_arrived)
    assert second.num_fetched == len(CONTENT) - first.num_arrived


def test_the_verdict_of_what_was_closed_is_a_stop_and_moves_nothing(come, dest, monkeypatch):
    coming = begin(come())
    coming.wait(0, len(CONTENT))
    fetch = coming._begun
    verified, real = threading.Event(), fetch.verify

    def closed_meanwhile(stop, progress):
        sha256 = real(stop, progress)
        verified.set()
        time.sleep(0.1)
        return sha256

    monkeypatch.setattr(fetch, "verify", closed_meanwhile)
    verdict = Background(lambda: coming.verdict(threading.Event(), None), "verdict")
    assert verified.wait(10)
    coming.close()
    os.close(lock_now(dest.parent / ".x.h5.lock"))
    with pytest.raises(Interrupted):
        verdict.result()
    assert leftovers(dest) == [".x.h5.journal", ".x.h5.part"]


def test_a_stop_does_not_wait_until_all_that_is_there_is_hashed(come, s3_client, own_key):
    without_blocks(s3_client, own_key)
    coming = begin(come(own_key))
    coming.wait(0, len(CONTENT))
    with pytest.raises(Interrupted, match="stopped after 5 of 5 MB"):
        coming.verdict(threading.Event(), lambda _done, _all: coming.close())


@pytest.mark.parametrize("has_blocks", [True, False])
def test_false_bytes_are_removed_by_the_verdict(come, proxy, s3_client, own_key, dest, has_blocks):
    if not has_blocks:
        without_blocks(s3_client, own_key)
    coming = come(own_key)
    proxy.faults.corrupt = 1
    begin(coming)
    with pytest.raises(ChecksumMismatch):
        coming.verdict(threading.Event(), None)
    with pytest.raises(ChecksumMismatch):  # and not another file of that number
        coming.open()
    assert leftovers(dest) == []


@pytest.mark.parametrize("is_bad", [False, True])
def test_what_holds_no_field_is_not_gone_on_from(come, proxy, field_key, fields, dest, is_bad):
    coming = come(field_key)
    with TrajectoryFile(dest, coming=coming) as file:
        begin(coming)
        found = file.read(0, 4)
        if is_bad:
            found[2, 3, 4] = np.nan
            with pytest.raises(DataError, match="trajectory 2 has NaN"):
                file.check_finite(found, 0)
        coming.close()
    assert leftovers(dest) == ([] if is_bad else [".x.h5.journal", ".x.h5.part"])
