"""A stream that is interrupted where the store gives no answer: at once, and nothing is lost."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.latents.test_stream import finished
from tests.live import wait_until
from ups.background import Background
from ups.latents import journal

STALLS = {  # the request from which on nothing comes, by its object, its place and its number
    "the fit": lambda path, asked: len(asked) > 5,
    "train": lambda path, asked: len(asked) > 9,
    "val": lambda path, asked: "val" in path,
    "the verdict": lambda path, asked: "train" in path and asked[-1].startswith("bytes=0-"),
}


@pytest.mark.parametrize("what", STALLS)
def test_ctrl_c_while_the_store_stalls_ends_it_at_once_and_the_next_goes_on_from_there(
    streaming, sources, proxy, tmp_path, caplog, what
):
    given, gate = sources(), threading.Event()
    stalled_at, interrupted_at = [], []

    def stall(path):
        if len(proxy.ranges) > 3 and (stalled_at or STALLS[what](path, proxy.ranges)):
            stalled_at.append(time.monotonic())
            gate.wait(20)

    def interrupt():
        wait_until(lambda: stalled_at and time.monotonic() > stalled_at[0] + 0.2)
        if what == "val":  # train is there, and its verdict is not long in coming
            wait_until(lambda: list((tmp_path / "data").rglob("*train.h5")))
        interrupted_at.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    config = {
        "data__sources": given,
        "encoder__fit_trajectories": 4,
        "features__parallel_downloads": False,
    }
    proxy.faults.on_range = stall
    Background(interrupt, "interrupt")
    with pytest.raises(KeyboardInterrupt):
        streaming(**config)[1].latents.arrival.wait_settled(lambda: False)
    streaming.close()
    took_s = time.monotonic() - interrupted_at[0]
    assert took_s < 1
    ours = ("encode", "build", "hash")
    wait_until(lambda: not [t for t in threading.enumerate() if t.name.startswith(ours)], 1)
    opened = [os.readlink(fd) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
    assert not [path for path in opened if path.startswith(str(tmp_path / "data"))]
    noted = list((tmp_path / "cache").glob(f"*/building-*/{journal.NAME}"))
    encoded = sum(len(path.read_text().splitlines()) - 1 for path in noted)
    assert bool(encoded) == (what != "the fit")

    gate.set()
    proxy.ranges.clear()
    proxy.faults.on_range = lambda _: None
    caplog.set_level("INFO", "ups")
    config, stream = streaming(**config)
    assert stream.result()
    assert (f"{encoded} chunks are done" in caplog.text) == bool(encoded)
    fetched = sum(s.fetched_bytes for of in finished(stream) for s in of)
    headers = proxy.ranges.count("bytes=0-65535")
    bounds = [header.removeprefix("bytes=").split("-") for header in proxy.ranges]
    assert sum(int(last) + 1 - int(first) for first, last in bounds) == (
        fetched + headers * (64 << 10)
    )
    total = sum(path.stat().st_size for path in config.data_root.rglob("*.h5"))
    assert 0 < fetched < total
