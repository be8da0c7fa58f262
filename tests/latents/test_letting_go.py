"""Without data.keep_sources the bytes of objects go once they are encoded, and are not missed."""

from __future__ import annotations

import shutil
import threading
from contextlib import closing

import h5py
import numpy as np
import pytest

from tests.conftest import TINY_FILE
from tests.data.objects import QUICK, without_blocks
from tests.live import wait_until
from ups.config import SPLITS
from ups.data import blocks, letting_go, passing_fetch
from ups.data.coming import PAGE_BYTES
from ups.data.objectstore import ObjectStore
from ups.data.sources import open_file
from ups.data.transfer import download
from ups.errors import DiskFull
from ups.latents import journal
from ups.latents.build import Build
from ups.latents.scout import scout

NUM, NUM_OTHERS = 96, 16
ROW_BYTES = 41 * 256 * 4
ENDS = {"train": (0, NUM), "val": (NUM, NUM + 16), "test": (NUM + 16, NUM + 32)}
TOTAL = (NUM + 2 * NUM_OTHERS) * ROW_BYTES
LATE = 4  # ranges of train before which nothing is encoded: the fit's rows


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Of which a file of a few MB has many; and a backlog of a few chunks."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1 << 16)
    monkeypatch.setattr(letting_go, "BACKLOG_BYTES", 1 << 20)
    monkeypatch.setattr(letting_go, "IN_FLIGHT_BYTES", 1 << 19)


@pytest.fixture(scope="module")
def fields():
    return np.random.default_rng(0).standard_normal((NUM + 32, 41, 256)).astype(np.float32)


@pytest.fixture
def uploaded(fields, tiny_data, tmp_path, store_env, request):
    """`uploaded(in_one)`: the sources of the splits, as objects or as rows of one."""
    folder = tmp_path / "uploaded"
    folder.mkdir()

    def write(name, content):
        path = folder / name
        with h5py.File(tiny_data / TINY_FILE.format("train")) as tiny, h5py.File(path, "w") as file:
            file["tensor"], file["t-coordinate"] = content, tiny["t-coordinate"][:]
            file.attrs["Nu"] = tiny.attrs["Nu"]
        key = f"{request.node.name}/{name}"
        with closing(ObjectStore()) as client:
            client.upload(path, "tiny", key)
        return {"key": key, "bucket": "tiny"}

    def make(in_one):
        if in_one:
            one = write("all.h5", fields)
            return {split: [{**one, "rows": rows}] for split, rows in ENDS.items()}
        return {s: [write(f"{s}.h5", fields[slice(*ENDS[s])])] for s in SPLITS}

    return make


@pytest.fixture
def passing(streaming):
    """`passing(sources, **overrides)`: a config without keep_sources, and a stream, begun."""
    few = {"features__parallel_downloads": False, "encoder__fit_trajectories": 4}

    def make(sources, **overrides):
        given = {"data__keep_sources": False, "data__sources": sources, **few, **overrides}
        return streaming(**given)

    return make


def files(config):
    """Names of what is in the data's folder, but for locks."""
    found = [path.name for path in config.data_root.rglob("*") if path.is_file()]
    return sorted(name for name in found if not name.endswith(".lock"))


def room_of(path):
    return path.stat().st_blocks * 512


def room_of_parts(tmp_path):
    return sum(map(room_of, (tmp_path / "data").rglob("*.part")))


def latents(stream):
    return [getattr(stream.latents, name).z_NTKD.clone() for name in ("train", "val")]


@pytest.fixture(scope="module")
def known():
    """The latents of files that are kept, once a test has made them."""
    return []


@pytest.fixture
def are_those_of_kept_files(streaming, passing, known):
    """`are_those_of_kept_files(found, sources, config)`: whether the latents are."""

    def compare(found, sources, config):
        if not known:
            streaming.close()
            shutil.rmtree(config.data_root)
            shutil.rmtree(config.training.latent_cache_dir)
            _, stream = passing(sources, data__keep_sources=True)
            assert stream.result()
            known.extend(latents(stream))
        return all((one == other).all() for one, other in zip(found, known, strict=True))

    return compare


def num_asked(proxy):
    """Bytes of the ranges that were asked for."""
    bounds = [header.removeprefix("bytes=").split("-") for header in proxy.ranges]
    return sum(int(last) + 1 - int(first) for first, last in bounds)


@pytest.fixture
def cut_short(passing, streaming, proxy, tmp_path):
    """`cut_short(sources)`: the config of a run that ended in the middle of train."""

    def run(sources):
        gate, asked = threading.Event(), []

        def stall(path):
            asked.append(path)
            return len(asked) > 3 + LATE + 6 and gate.wait(20) and None

        proxy.faults.on_range = stall
        config, _ = passing(sources)
        wait_until(lambda: len(asked) > 3 + LATE + 6)  # nothing arrives from here on
        wait_until(lambda: num_encoded(tmp_path) >= 4)
        batch_bytes = config.training.encode_batch_size * ROW_BYTES
        wait_until(lambda: room_of_parts(tmp_path) < num_encoded(tmp_path) * batch_bytes / 2)
        streaming.close()
        gate.set()
        proxy.faults.on_range = lambda _: None
        return config

    return run


def num_encoded(tmp_path):
    noted = (tmp_path / "cache").glob(f"*/building-*/{journal.NAME}")
    return sum(len(path.read_text().splitlines()) - 1 for path in noted)


@pytest.mark.parametrize("in_one", [False, True])
def test_the_disk_holds_few_bytes_at_a_time_and_the_latents_are_those_of_kept_files(
    passing, uploaded, fields, proxy, tmp_path, are_those_of_kept_files, in_one
):
    sources, taken = uploaded(in_one), []

    def look(_):
        taken.append(room_of_parts(tmp_path))

    proxy.faults.on_range = look
    config, stream = passing(sources)
    assert stream.result()
    assert 0 < max(taken) < TOTAL / 2
    (test,) = stream.scouted.finished("burgers1d", "test")
    with open_file(config.only_problem(), test.path, test.rows) as file:
        assert (file.read(0, NUM_OTHERS) == fields[slice(*ENDS["test"])]).all()
        assert file.parameter == 0.02
    name = "all" if in_one else "test"
    assert files(config) == [f".{name}.h5.journal", f".{name}.h5.part"]
    assert room_of(test.path) < 2 * NUM_OTHERS * ROW_BYTES
    stream.scouted.remove_let_go()
    assert files(config) == []
    found, proxy.faults.on_range = latents(stream), lambda _: None
    assert are_those_of_kept_files(found, sources, config)


def test_the_disk_needs_room_for_latents_and_what_is_on_its_way_alone(
    passing, uploaded, monkeypatch
):
    sources, usage = uploaded(True), shutil.disk_usage
    free = (64 << 20) + 3_000_000
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(path)._replace(free=free))
    with pytest.raises(DiskFull, match="all.h5 needs 5 MB"):
        passing(sources, data__keep_sources=True)
    assert passing(sources)[1].result()


def test_fetches_wait_for_what_is_encoded(passing, uploaded, tmp_path, monkeypatch):
    gate, encode = threading.Event(), Build.encode
    monkeypatch.setattr(Build, "encode", lambda *given: gate.wait(20) and encode(*given))
    _, stream = passing(uploaded(True))
    (part,) = (tmp_path / "data").rglob("*.part")
    try:
        wait_until(lambda: room_of(part) > 1 << 20)
        assert not stream.is_done(0.3)
        assert room_of(part) < TOTAL / 2
    finally:
        gate.set()
    assert stream.result()


def test_fetches_do_not_wait_for_what_waits_for_them(passing, uploaded, monkeypatch):
    monkeypatch.setattr(letting_go, "BACKLOG_BYTES", 1)
    _, stream = passing(uploaded(True), features__parallel_downloads=True)
    assert stream.is_done(10)
    assert stream.result()


@pytest.mark.parametrize("in_one", [False, True])
def test_a_run_that_was_cut_short_goes_on_and_what_was_let_go_is_not_fetched_again(
    passing, uploaded, cut_short, proxy, tmp_path, caplog, are_those_of_kept_files, in_one
):
    sources = uploaded(in_one)
    config = cut_short(sources)
    (part,) = config.data_root.rglob(".all.h5.part" if in_one else ".train.h5.part")
    encoded, batch = num_encoded(tmp_path), config.training.encode_batch_size
    assert room_of(part) < encoded * batch * ROW_BYTES / 2
    proxy.ranges.clear()
    caplog.set_level("INFO", "ups")
    _, stream = passing(sources)
    assert stream.result()
    assert f"{encoded} chunks are done" in caplog.text
    assert "come again" not in caplog.text
    staged = [s for split in SPLITS for s in stream.scouted.finished("burgers1d", split)]
    fetched = sum(source.fetched_bytes for source in staged)
    total = sum(path.stat().st_size for path in (tmp_path / "uploaded").iterdir())
    assert num_asked(proxy) <= fetched + 6 * PAGE_BYTES
    assert 0 < fetched <= total - encoded * batch * ROW_BYTES
    assert are_those_of_kept_files(latents(stream), sources, config)


@pytest.mark.parametrize("without", ["its build", "a chunk", "its choice", "a stream"])
def test_what_was_let_go_is_fetched_again_where_it_is_needed(
    passing, uploaded, cut_short, proxy, tmp_path, caplog, are_those_of_kept_files, without
):
    sources = uploaded(False)
    config = cut_short(sources)
    caplog.set_level("INFO", "ups")
    (part,) = config.data_root.rglob(".train.h5.part")
    if without == "a stream":
        with closing(ObjectStore(proxy.url, retry=QUICK)) as client:
            whole = download(client, "tiny", sources["train"][0]["key"], part.with_name("train.h5"))
        assert whole.path.read_bytes() == (tmp_path / "uploaded" / "train.h5").read_bytes()
        return
    if without == "its build":
        shutil.rmtree(config.training.latent_cache_dir)
    elif without == "a chunk":
        (file,) = config.training.latent_cache_dir.glob("*/building-*/train_*.safetensors")
        with file.open("r+b") as damaged:
            damaged.seek(1 << 13)
            damaged.write(b"x" * (file.stat().st_size - (1 << 13)))
    _, stream = passing(sources, data__keep_sources=without == "its choice")
    assert stream.result()
    assert ("come again" in caplog.text) == (without == "a chunk")
    stream.scouted.finished("burgers1d", "test")
    names = {"train.h5", "val.h5", "test.h5"} & set(files(config))
    assert len(names) == (3 if without == "its choice" else 0)
    assert are_those_of_kept_files(latents(stream), sources, config)


@pytest.mark.parametrize("why", ["no holes", "no blocks"])
def test_where_bytes_cannot_go_one_by_one_they_go_at_the_end(
    passing, uploaded, s3_client, caplog, monkeypatch, why
):
    sources = uploaded(False)
    caplog.set_level("INFO", "ups")
    if why == "no holes":
        monkeypatch.setattr(passing_fetch, "punch_hole", lambda *_: False)
    else:
        without_blocks(s3_client, sources["train"][0]["key"], "tiny")
    config, stream = passing(sources)
    assert stream.result()
    stream.scouted.finished("burgers1d", "test")
    assert files(config) == [".test.h5.journal", ".test.h5.part"]
    assert caplog.text.count("train.h5.part: no holes") == (why == "no holes")
    assert "downloaded s3" in caplog.text


def test_where_nothing_streams_the_files_are_kept_and_that_is_said(passing, uploaded, caplog):
    config, stream = passing(uploaded(False))
    stream.close()
    caplog.set_level("INFO", "ups")
    off = config.features.model_copy(update={"stream": "off"})
    with closing(ObjectStore()) as client:
        found = scout(config.model_copy(update={"features": off}), client, threading.Event(), print)
    assert found is None
    assert "the files are kept, as nothing streams" in caplog.text
