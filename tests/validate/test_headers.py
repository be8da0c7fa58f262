"""Headers of objects that are not staged tell what is in them, and no trajectory is fetched."""

import re
import shutil
import threading
from contextlib import closing

import h5py
import numpy as np
import pytest

from ups.config import SPLITS
from ups.data.objectstore import ObjectStore
from ups.latents.build import ensure
from ups.validate.cache import validate_cache
from ups.validate.data import validate_data
from ups.validate.sources import select


@pytest.fixture
def objects(in_store, bucket, tiny_data, tmp_path, request):
    """`objects(change, **overrides)`: a config; `change` does something to its train object.

    `rows` are those of train.
    """

    def make(change=lambda path: None, rows=None, **overrides):
        sources = {}
        for split in SPLITS:
            path = tmp_path / f"{split}.h5"
            shutil.copy(tiny_data / f"burgers1d_{split}.h5", path)
            if split == "train":
                change(path)
            key = f"{request.node.originalname}/{path.name}"
            with closing(ObjectStore()) as store:
                store.upload(path, bucket, key)
            sources[split] = [{"key": key, "bucket": bucket}]
        sources["train"][0]["rows"] = rows
        return in_store(data__sources=sources, **overrides)

    return make


def headers(config, **options):
    """The checks of headers by their splits, and the sources."""
    checks, sources = validate_data(config, **options)
    found = {c.name.removesuffix(" header"): c for c in checks if c.name.endswith(" header")}
    return found, sources


def write(path, tensor, **options):
    """The file with other trajectories."""
    with h5py.File(path, "r+") as file:
        del file["tensor"], file["t-coordinate"]
        file.create_dataset("tensor", data=tensor, **options)
        file.attrs["dt"] = 0.01


def test_shape_parameter_and_times_are_known_of_what_is_not_staged_and_kilobytes_are_fetched(
    objects, proxy, tmp_path
):
    found, sources = headers(objects(data__endpoint_url=proxy.url))
    train = found["train"]
    assert (train.status, train.figures["shape"]) == ("ok", (20, 41, 256))
    assert train.text.endswith("train.h5: (20, 41, 256), ν 0.02, dt 0.01, by its header")
    known = {k.wanted.split: (k.num_trajectories, k.num_frames, k.is_read) for k in sources}
    assert known == {"train": (20, 41, True), "val": (5, 41, True), "test": (6, 41, True)}
    assert {asked.partition("-")[0] for asked in proxy.ranges} == {"bytes=0"}
    assert len(proxy.ranges) == 3
    assert not (tmp_path / "staged").exists()


FAULTS = {
    "grid": (
        lambda p: write(p, np.ones((20, 41, 128), "<f4")),
        "128 grid points, expected 256; set",
    ),
    "rank": (lambda p: write(p, np.ones((20, 256), "<f4")), r"has shape \(20, 256\), expected"),
    "frames": (lambda p: write(p, np.ones((20, 3, 256), "<f4")), "trajectories have 3 frames"),
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:90_000]), "is truncated: found 90000"),
    "no HDF5": (lambda p: p.write_bytes(b"<html>" * 99), "found 594 bytes that are not HDF5"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_of_a_header_is_found_by_the_objects_name_and_the_others_are_read(
    objects, fault
):
    change, message = FAULTS[fault]
    found, _ = headers(objects(change))
    assert (found["train"].status, found["val"].status) == ("fault", "ok")
    assert re.search(rf"^s3://\S+/train\.h5.*{message}", found["train"].text)


def test_rows_and_a_parameter_that_do_not_fit_are_faults(objects):
    found, _ = headers(objects(rows=[15, 21], data__parameter={"nu": 0.03}))
    assert "found ν = 0.02 by its attribute, and 0.03 as parameter.nu" in found["test"].text
    found, sources = headers(objects(rows=[15, 21]))
    assert "rows [15, 21) asked for, the file has 20 trajectories" in found["train"].text
    found, sources = headers(objects(rows=[15, 19]))
    assert (found["train"].status, select(sources, ["train"])[0].num_trajectories) == ("ok", 4)


def test_frames_of_a_splits_objects_are_compared(objects, in_store):
    config = objects(lambda path: write(path, np.ones((2, 21, 256), "<f4")))
    sources = {s: [of.model_dump() for of in config.data.sources[s]] for s in SPLITS}
    shards = {**sources, "train": sources["train"] + sources["val"]}
    checks, _ = validate_data(in_store(data__sources=shards))
    (fault,) = (check for check in checks if check.status == "fault")
    assert fault.name == "train frames"
    assert re.search(r"train\.h5 have 21 frames and those of \S+val\.h5 41: ", fault.text)


def test_what_cannot_stream_is_said_and_is_a_fault_where_it_has_to(objects):
    def pack(path):
        write(path, np.ones((20, 41, 256), ">f8"), chunks=(1, 41, 256), compression="gzip")

    found, sources = headers(objects(pack))
    assert "(20, 41, 256)" in found["train"].text
    assert found["train"].text.endswith("all of it is fetched before training begins")
    assert (found["train"].figures["streams"], found["val"].figures["streams"]) == (False, True)
    found, _ = headers(objects(pack, features__stream="on"))
    assert (found["train"].status, found["val"].status) == ("fault", "ok")
    assert "features.stream: found on, but" in found["train"].text


def test_the_entry_is_found_before_anything_is_fetched_though_its_parameter_is_in_the_key(
    objects, stage_from_store, tmp_path
):
    def unnamed(path):
        with h5py.File(path, "r+") as file:
            del file.attrs["Nu"]

    config = objects(unnamed, data__parameter={"nu": 0.02})
    built = ensure(config, stage_from_store(config))
    shutil.rmtree(tmp_path / "staged")
    _, sources = headers(config)
    assert select(sources, ["train"])[0].parameter == 0.02
    assert select(sources, ["val"])[0].parameter is None
    checks, found = validate_cache(config, sources)
    assert (found, checks[0].figures["config_hash"]) == ({"burgers1d": True}, built.config_hash)


def test_headers_that_do_not_come_in_time_are_left_unknown(objects, proxy):
    proxy.faults.stall, proxy.faults.cut_after = threading.Event(), 0
    found, sources = headers(objects(data__endpoint_url=proxy.url), timeout_s=0.5)
    proxy.faults.stall.set()
    assert {check.status for check in found.values()} == {"skip"}
    assert "was not read in time (see --timeout)" in found["train"].text
    assert not any(known.is_read for known in sources)


def test_a_store_that_knows_no_ranges_is_no_fault(objects, proxy, tiny_data):
    config = objects(data__endpoint_url=proxy.url)
    proxy.faults.whole = (tiny_data / "burgers1d_train.h5").read_bytes()
    found, _ = headers(config)
    assert found["train"].status == "skip"
    assert "cannot be read alone" in found["train"].text


def test_offline_no_header_is_asked_for(objects):
    found, _ = headers(objects(), offline=True)
    assert not found
