"""What is staged is known by its content, by what its name alone tells, and by its frames."""

import os
import shutil
import threading
from contextlib import ExitStack

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ups.data import lookup
from ups.data.sources import check_unchanged, open_file, open_store, stage
from ups.errors import DataError, Interrupted
from ups.latents.build import ensure
from ups.latents.encode import PatchEncoder
from ups.latents.key import compute_cache_hash
from ups.latents.store import generation_dir, open_current


@pytest.fixture
def local(tiny_data, tmp_path, tiny_config):
    """`local(**overrides)`: the tiny config on a copy of its files; and their folder."""
    root = tmp_path / "local"
    shutil.copytree(tiny_data, root)
    return lambda **overrides: tiny_config(data__root=str(root), **overrides), root


@pytest.fixture
def open_store_of():
    with ExitStack() as opened:

        def open_(config):
            store = open_store(config)
            opened.callback(store.close)
            return store

        yield open_


def change_in_place(path):
    """Other values in the last row, and the time put back."""
    before = path.stat()
    with h5py.File(path, "r+") as file:
        file["tensor"][-1] += 1
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_renamed_file_is_another_key_where_its_name_alone_tells_the_parameter(local):
    make, root = local

    def key(name, attrs):
        with h5py.File(root / "burgers1d_val.h5", "r+") as file:
            file.attrs.clear()
            file.attrs.update(attrs)
        for split in ("train", "val"):
            shutil.copy(root / "burgers1d_val.h5", root / f"{name}_{split}.h5")
        config = make(data__task=[name])
        return compute_cache_hash(config, {s: stage(config, s, None) for s in ("train", "val")})

    names = ("burgers1d_Nu1e-3", "burgers1d_Nu0.001", "burgers1d_Nu0.1")
    first, same, other = (key(name, {}) for name in names)
    assert first == same != other
    assert len({key(name, {"Nu": 0.02}) for name in (*names, "burgers1d_other")}) == 1


def test_rows_of_a_local_file_are_sources_beside_objects_and_a_folder_is_none(
    local, bucket_sources, store_env, open_store_of
):
    make, root = local
    whole = {"path": str(root / "burgers1d_train.h5")}
    sources = {
        "train": [{**whole, "rows": [4, 12]}, {**whole, "rows": [12, 20]}, *bucket_sources["val"]],
        "val": [{**whole, "rows": [0, 4]}],
        "test": [whole],
    }
    config = make(data__sources=sources)
    assert not config.data.is_local
    for _ in range(2):  # the second time the object is here
        first, second, third = stage(config, "train", open_store_of(config))
        assert (first.rows, second.rows, third.rows) == ((4, 12), (12, 20), None)
        assert first.path == second.path == root / "burgers1d_train.h5"
        assert third.path.is_relative_to(root / "tiny")
    with open_file(config, first.path, first.rows) as part, h5py.File(first.path) as file:
        assert np.array_equal(part.read(0, 8), file["tensor"][4:12])
    local_only = make(data__sources={**sources, "train": sources["train"][:2]})
    assert local_only.data.is_local
    for path, found in ((root, "found a folder"), (root / "no.h5", "no such file")):
        bad = make(data__sources={**sources, "val": [{"path": str(path)}]})
        with pytest.raises(
            DataError, match=rf"val\.0\.path of burgers1d: {path}: {found}, expected an"
        ):
            stage(bad, "val", None)


def test_a_parameter_of_the_config_is_part_of_the_key_only_where_the_files_do_not_hold_it(local):
    make, root = local

    def key(parameter):
        config = make(data__parameter=parameter)
        return compute_cache_hash(config, {s: stage(config, s, None) for s in ("train", "val")})

    assert key(None) == key({"nu": 0.02})  # what the files hold
    with pytest.raises(
        DataError, match=r"_train\.h5: found ν = 0\.02 by its attribute, and 0\.03 as"
    ):
        key({"nu": 0.03})
    for split in ("train", "val"):
        with h5py.File(root / f"burgers1d_{split}.h5", "r+") as file:
            del file.attrs["Nu"]
    assert key({"nu": 0.02}) != key({"nu": 0.03})


def test_test_files_that_do_not_go_together_or_are_of_another_grid_are_refused_when_staged(local):
    make, root = local

    def write(name, *shape):
        with h5py.File(root / name, "w") as file:
            file.attrs.update({"Nu": 0.02, "dt": 0.01})
            file["tensor"] = np.ones(shape, "<f4")

    (root / "burgers1d_test.h5").unlink()
    write("burgers1d_test_000.h5", 3, 41, 256)
    assert len(stage(make(), "test", None)) == 1
    write("burgers1d_test_001.h5", 3, 61, 256)
    wanted = r"test_000\.h5 have 41 frames and those of .*test_001\.h5 61: .* that is 11 and 16"
    with pytest.raises(DataError, match=wanted):
        stage(make(), "test", None)
    strided = make(encoder__t_stride=2, training__time_stride=1)
    with pytest.raises(DataError, match=r"21 frames left by encoder\.t_stride 2 and .* 31: with"):
        stage(strided, "test", None)
    write("burgers1d_test_001.h5", 3, 41, 128)
    wanted = r"test_001\.h5: .* has 128 grid points, expected 256; set data.grid_points to 128, or"
    with pytest.raises(DataError, match=wanted):
        stage(make(), "test", None)
    wanted = r"to 128 and latent\.tokens to a divisor of 64, such as 64, 32 or 16, or use data on"
    with pytest.raises(DataError, match=wanted):
        stage(make(latent__tokens=128, encoder__x_stride=2), "test", None)
    write("burgers1d_test_001.h5", 3, 44, 256)  # as many after the time stride
    assert len(stage(make(), "test", None)) == 2


def moved(path, name):
    """A data set goes into another file, and a virtual one or a link takes its place."""
    parts = path.with_name("parts.h5")
    with h5py.File(path, "r+") as file, h5py.File(parts, "a") as other:
        other[name] = file[name][()]
        shape, dtype = file[name].shape, file[name].dtype
        del file[name]
        if name == "tensor":
            layout = h5py.VirtualLayout(shape, dtype)
            layout[...] = h5py.VirtualSource(parts, name, shape)
            file.create_virtual_dataset(name, layout)
        else:
            file[name] = h5py.ExternalLink(parts, name)


@pytest.mark.parametrize("name", ["tensor", "t-coordinate"])
def test_a_file_of_other_files_values_is_refused_when_staged_whatever_is_cached_of_it(local, name):
    make, root = local
    config = make()
    for split in ("train", "val", "test"):
        moved(root / f"burgers1d_{split}.h5", name)
        (root / "parts.h5").rename(root / f"{split}_parts.h5")
        with pytest.raises(DataError, match=rf"_{split}\.h5: '{name}' is a .* lie in .*parts\.h5"):
            stage(config, split, None)


def test_a_file_that_changes_between_hashing_and_encoding_makes_no_entry(local, stage_all):
    make, root = local
    config, path = make(), root / "burgers1d_train.h5"
    staged = stage_all(config)
    change_in_place(path)
    wanted = r"burgers1d_train\.h5 was changed while it was read: found SHA-256 .*run again"
    stop = threading.Event()
    with pytest.raises(DataError, match=wanted):  # though it was to stop before its first chunk
        ensure(config, staged, stop=stop, progress=lambda *_: stop.set())
    cache_dir = config.training.latent_cache_dir
    assert not [*cache_dir.glob("*/CURRENT"), *cache_dir.glob("*/building-*")]
    (root / "burgers1d_val.h5").touch()
    check_unchanged(staged["val"])


def test_what_a_stopped_build_read_of_a_changed_file_is_not_gone_on_with(local, stage_all):
    make, root = local
    config, path = make(features__parallel_encode=False), root / "burgers1d_train.h5"
    shutil.copy(path, root / "as_it_was")
    staged, stop, done = stage_all(config), threading.Event(), []

    def change_then_stop(num, _total):
        if num == 8:  # two chunks of 4 are encoded
            with h5py.File(path, "r+") as file:
                file["tensor"][8:12] += 1
        if num == 12:
            stop.set()

    with pytest.raises(Interrupted):
        ensure(config, staged, stop=stop, progress=change_then_stop)
    shutil.copy(root / "as_it_was", path)
    entry = ensure(config, stage_all(config), progress=lambda num, _: done.append(num))
    assert done[0] == 8
    manifest = open_current(config.training.latent_cache_dir, entry.config_hash)
    folder = generation_dir(config.training.latent_cache_dir, manifest)
    found = load_file(folder / "train_000.safetensors")["latents"]
    with h5py.File(path) as file:
        fields = torch.from_numpy(file["tensor"][()])
    assert torch.equal(found, PatchEncoder.from_manifest(manifest.encoder).encode(fields).half())


@pytest.fixture
def shards(bucket, tiny_config, tmp_path):
    """`shards(*rows, …)`: a config whose train split is three objects, or so many rows of one."""
    keys = [f"burgers1d/burgers1d_{split}.h5" for split in ("train", "val", "test")]

    def make(*rows, **overrides):
        train = [{"key": keys[0], "rows": of} for of in rows] or [{"key": key} for key in keys]
        sources = {"train": train, "val": [{"key": keys[1]}], "test": [{"key": keys[2]}]}
        places = {"data__bucket": bucket, "data__root": str(tmp_path / "staged")}
        return tiny_config(data__sources=sources, **places, **overrides)

    return make


def test_the_store_is_asked_about_shards_that_are_there_at_once(shards, proxied, proxy):
    first = stage(shards(), "train", proxied)
    meeting = threading.Barrier(3)  # each answer waits for the two other questions
    proxy.faults.edit = lambda method, _: method == "HEAD" and meeting.wait(5)
    again = stage(shards(), "train", proxied)
    assert [(s.path, s.sha256) for s in again] == [(s.path, s.sha256) for s in first]
    assert {s.fetched_bytes for s in again} == {0}
    assert not meeting.broken


def test_many_shards_that_are_there_are_known_by_one_listing(shards, proxied, proxy, monkeypatch):
    first = stage(shards(), "train", proxied)
    monkeypatch.setattr(lookup, "LEAST", len(first))
    asked = []
    proxy.faults.edit = lambda method, _: asked.append(method)
    again = stage(shards(), "train", proxied)
    assert asked == ["GET"]
    assert [s.sha256 for s in again] == [s.sha256 for s in first]
    stage(shards(features__parallel_downloads=False), "train", proxied)
    assert asked[1:] == ["HEAD"] * len(first)


def test_it_is_asked_once_about_an_object_that_is_cut_by_rows_and_in_turn_where_that_is_wanted(
    shards, proxied, proxy
):
    asked = []
    config = shards((0, 4), (4, 8), (8, 12))
    stage(config, "train", proxied)
    proxy.faults.edit = lambda method, _: method == "HEAD" and asked.append(method)
    assert [s.rows for s in stage(config, "train", proxied)] == [(0, 4), (4, 8), (8, 12)]
    assert len(asked) == 1
    in_turn = shards((0, 4), (4, 8), (8, 12), features__parallel_downloads=False)
    stage(in_turn, "train", proxied)
    assert len(asked) == 4
