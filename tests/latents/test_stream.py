"""Latents that are read while they are built: as those of an entry, or an error and no trace."""

import errno
import itertools
import os
import shutil
import threading
from contextlib import closing

import h5py
import numpy as np
import pytest

from tests.conftest import ON_GRID, TINY_FILE
from ups.config import SPLITS
from ups.data import partial_file
from ups.data.objectstore import ObjectStore
from ups.errors import ChecksumMismatch, ConfigError, DataError, DiskFull, FetchError
from ups.files import is_locked, lock_now
from ups.latents import store
from ups.pipeline.phases import build_caches, load_latents, stage_splits
from ups.progress import logged

GRID = {key.replace(".", "__"): value for key, value in ON_GRID.items()}


def finished(stream):
    """The sources of each split of each problem, once all are there."""
    scouted = stream.scouted
    return [scouted.finished(name, split) for name in scouted.by_problem for split in SPLITS]


def places(config):
    """What is in the data's and in the cache's folder, without what is only a lock."""
    cache = config.training.latent_cache_dir
    found = [p.name for p in config.data_root.rglob("*") if p.is_file()]
    found += [p.name for entry in cache.iterdir() for p in entry.iterdir()]
    return sorted(name for name in found if not name.endswith("lock"))


def locks(config):
    cache = config.training.latent_cache_dir
    return [p for root in (config.data_root, cache) for p in root.rglob("*lock") if is_locked(p)]


def as_rows(tiny_data, tmp_path, upload):
    """The three splits as rows of one object."""
    path, ends, fields = tmp_path / "one" / "all.h5", [0], []
    path.parent.mkdir()
    for split in SPLITS:
        with h5py.File(tiny_data / TINY_FILE.format(split)) as file:
            fields.append(file["tensor"][:])
            ends.append(ends[-1] + len(fields[-1]))
            times, parameter = file["t-coordinate"][:], file.attrs["Nu"]
    with h5py.File(path, "w") as file:
        file["tensor"], file["t-coordinate"] = np.concatenate(fields), times
        file.attrs["Nu"] = parameter
    one = {"key": upload(path), "bucket": "tiny"}
    rows = zip(SPLITS, itertools.pairwise(ends), strict=True)
    return {split: [{**one, "rows": pair}] for split, pair in rows}


def shards(bucket_sources):
    train = [{**bucket_sources["train"][0], "rows": rows} for rows in ((4, 20), (0, 3))]
    return {**bucket_sources, "train": train}


def several_problems(mixed_data, upload):
    """With a budget that has no room for one of their entries."""
    tasks = [
        {
            "name": name,
            "sources": {
                s: [{"key": upload(mixed_data / f"{name}_{s}.h5"), "bucket": "tiny"}]
                for s in SPLITS
            },
        }
        for name in ("burgers1d", "advection1d")
    ]
    budget = {"training__latent_cache_max_gb": 1e-6}
    return {"data__task": tasks, "data__sources": None, **budget}


@pytest.mark.parametrize(
    ("of", "overrides"),
    [
        ("three objects", {}),
        ("one object", {}),
        ("shards", {}),
        ("several problems", {}),
        ("val on disk", {}),
        ("identity", {**GRID, "encoder__t_stride": 2, "training__time_stride": 2}),
        ("no workers", {"training__num_workers": 0, "features__parallel_downloads": False}),
        ("other chunks", {"features__parallel_encode": False, "training__encode_batch_size": 7}),
    ],
)
def test_what_streams_is_what_an_entry_holds_that_is_built_of_files(
    streaming, bucket_sources, upload, tiny_data, mixed_data, tmp_path, of, overrides
):
    if of == "one object":
        overrides = {"data__sources": as_rows(tiny_data, tmp_path, upload)}
    elif of == "shards":
        overrides = {"data__sources": shards(bucket_sources)}
    elif of == "several problems":
        overrides = several_problems(mixed_data, upload)
    elif of == "val on disk":
        place = tmp_path / "data" / "tiny" / "burgers1d"
        place.mkdir(parents=True)
        shutil.copy(tiny_data / TINY_FILE.format("val"), place)
    config, stream = streaming(**overrides)
    entries = stream.result()
    assert all(staged.state for of_split in finished(stream) for staged in of_split)
    assert locks(config) == []  # others need not wait until training ends

    other_dir = {"latent_cache_dir": tmp_path / "plain"}
    plain = config.model_copy(
        update={
            "training": config.training.model_copy(update=other_dir),
            "features": config.features.model_copy(update={"preload": "ram"}),
        }
    )
    with closing(ObjectStore()) as client:
        staged = stage_splits(plain, SPLITS, client, logged)
    others = build_caches(plain, staged, logged, overwrite=False)
    with closing(load_latents(plain, staged, others)) as expected:
        for name in ("train", "val"):
            one, other = getattr(stream.latents, name), getattr(expected, name)
            assert (one.z_NTKD == other.z_NTKD).all()
            assert (one.condition_NC == other.condition_NC).all()
        assert stream.latents.key_fields == expected.key_fields
        assert stream.latents.val_ranges == expected.val_ranges
    for name, entry in entries.items():
        mine, its = (
            store.entry_dir(c.training.latent_cache_dir, e.config_hash) / e.generation
            for c, e in ((config, entry), (plain, others[name]))
        )
        for path in its.glob("*.safetensors"):
            assert (mine / path.name).read_bytes() == path.read_bytes()
        fetches = [store.read_manifest(directory).fetches for directory in (mine, its)]
        assert fetches[0] == fetches[1] != ()


@pytest.mark.parametrize("fault", ["corrupt", "NaN"])
def test_false_data_end_it_and_leave_nothing_to_go_on_from(
    streaming, sources, upload, tiny_data, proxy, tmp_path, fault
):
    given, faults = sources(), proxy.faults
    error, says = ChecksumMismatch, "the partial file was removed"
    if fault == "NaN":
        error, says = DataError, "trajectory 15 has NaN"
        shutil.copy(tiny_data / TINY_FILE.format("train"), bad := tmp_path / "bad_train.h5")
        with h5py.File(bad, "r+") as file:
            file["tensor"][15, 30, 100] = np.nan
        given = sources(train=upload(bad))
    else:  # the first range of train, after the headers
        faults.on_range = lambda path: (
            "train" in path and len(proxy.ranges) > 3 and setattr(faults, "corrupt", 1)
        )
    config, stream = streaming(data__sources=given, features__parallel_downloads=False)
    with pytest.raises(error, match=says):
        stream.latents.arrival.wait_settled(lambda: False)
    with pytest.raises(error, match=says):
        stream.result()
    stream.close()
    left = {name for name in places(config) if "building" in name or "train" in name}
    # One that had come whole before its NaN was met is what the store says, and stays.
    assert left in (set(), {"bad_train.h5", ".bad_train.h5.stamp"} if fault == "NaN" else set())
    assert locks(config) == []
    faults.on_range = lambda _: None
    assert streaming(data__sources=sources())[1].result()


def test_a_transfer_that_fails_for_good_ends_it_though_others_stall(streaming, sources, proxy):
    gate, is_fitted, of_train = threading.Event(), threading.Event(), []

    def trouble(path):
        if "train" in path:
            of_train.append(path)
            # The header and the fit's rows come, of which a busy machine asks one late.
            return len(of_train) > 1 + 4 and is_fitted.wait(2)
        return len(proxy.ranges) > 3 and gate.wait(20) and None

    proxy.faults.on_range = trouble
    few = {"encoder__fit_trajectories": 4, "training__num_workers": 8}
    _, stream = streaming(data__sources=sources(), **few)
    is_fitted.set()
    try:
        assert stream.is_done(5)
        with pytest.raises(FetchError, match="train.h5: gave up after 4 attempts"):
            stream.result()
    finally:
        gate.set()


def test_a_file_that_is_changed_while_it_is_encoded_ends_it(
    streaming, sources, tiny_data, proxy, tmp_path
):
    given, gate, of_train = sources(), threading.Event(), []
    val = tmp_path / "data" / "tiny" / given["val"][0]["key"]
    val.parent.mkdir(parents=True)
    shutil.copy(tiny_data / TINY_FILE.format("val"), val)

    def stall(path):  # once the encoder is fitted
        of_train.append(path)
        return len(of_train) > 9 and gate.wait(20) and None

    proxy.faults.on_range = stall
    few = {"encoder__fit_trajectories": 4, "features__parallel_downloads": False}
    _, stream = streaming(data__sources=given, **few)
    assert stream.latents.arrival.is_untouched
    with val.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read()[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    assert not stream.latents.arrival.is_untouched
    gate.set()
    with pytest.raises(DataError, match="val.h5 was changed while it was read: found SHA-256"):
        stream.result()


def test_a_disk_that_becomes_full_ends_it_and_what_has_arrived_is_kept(
    streaming, sources, monkeypatch
):
    written, real = [], partial_file.write_fully

    def write(fd, data, offset=None):
        written.append(len(data))
        if sum(written) > 300_000:  # after the fit's row
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(fd, data, offset)

    few = {"encoder__fit_trajectories": 1, "features__parallel_downloads": False}
    few["data__sources"] = sources()
    told = r"train\.h5\.part: the disk is full; expected room for 1 MB\. Make room, or set data"
    with monkeypatch.context() as full:
        full.setattr(partial_file, "write_fully", write)
        config, stream = streaming(**few)
        with pytest.raises(DiskFull, match=told):
            stream.latents.arrival.wait_settled(lambda: False)
        with pytest.raises(DiskFull, match=told):
            stream.result()
        stream.close()
    assert [name for name in places(config) if name.endswith("train.h5.part")]
    assert streaming(**few)[1].result()


@pytest.mark.parametrize("fault", ["reset", "truncate"])
def test_a_line_that_breaks_and_comes_back_changes_nothing(streaming, proxy, fault):
    setattr(proxy.faults, fault, 6)
    _, stream = streaming()
    assert stream.result()
    assert getattr(proxy.faults, fault) == 0


def test_an_object_that_changes_meanwhile_ends_it_and_the_next_run_takes_the_new_one(
    streaming, sources, upload, tiny_data, s3_client, proxy
):
    given = sources()
    key, other = given["train"][0]["key"], upload(tiny_data / TINY_FILE.format("val"))

    def change(path):
        if len(proxy.ranges) == 4:
            s3_client.copy_object(Bucket="tiny", Key=key, CopySource=f"tiny/{other}")

    proxy.faults.on_range = change
    with pytest.raises(FetchError, match=r"the object changed while it was read|by the answer"):
        streaming(data__sources=given)[1].result()


def test_where_memory_has_no_room_all_comes_first_and_that_is_said_once(
    streaming, monkeypatch, caplog
):
    monkeypatch.setattr("ups.latents.tiers.available_ram_mb", lambda: 0.0)
    with pytest.raises(ConfigError, match=r"^features.stream: found on, but the latents have no"):
        streaming()
    caplog.set_level("INFO", "ups")
    config, stream = streaming(features__stream="auto")
    assert stream is None
    assert locks(config) == []
    with closing(ObjectStore()) as client:
        staged = stage_splits(config, SPLITS, client, logged)
    load_latents(config, staged, build_caches(config, staged, logged, overwrite=False)).close()
    assert caplog.text.count("do not fit into") == 1
    assert caplog.text.count("no streaming start: the latents have no room in memory") == 1


@pytest.mark.parametrize("what", ["the entry", "a download"])
def test_what_another_process_builds_or_fetches_is_left_to_it(streaming, what, caplog):
    config, stream = streaming()
    stream.result()
    (entry,) = config.training.latent_cache_dir.glob("*/.lock")
    (train,) = config.data_root.rglob(".*train.h5.lock")
    shutil.rmtree(config.data_root)
    for generation in entry.parent.iterdir():
        shutil.rmtree(generation) if generation.is_dir() else None
    caplog.set_level("INFO", "ups")
    held = lock_now(entry if what == "the entry" else train)
    try:
        assert streaming(features__stream="auto")[1] is None
        with pytest.raises(ConfigError, match="found on, but this process"):
            streaming()
    finally:
        os.close(held)
    assert "no streaming start: this process" in caplog.text
    assert locks(config) == []
