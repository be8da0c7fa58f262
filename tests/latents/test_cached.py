"""Latents that are found in the cache although the files that they were made of are not here."""

import shutil
import threading
from contextlib import closing

import h5py
import pytest

from tests.conftest import TINY_FILE
from ups.config import SPLITS
from ups.data import lookup
from ups.data.objectstore import ObjectStore
from ups.errors import DataError
from ups.latents.ahead import look
from ups.latents.build import ensure
from ups.latents.cached import Cached, find_cached
from ups.latents.entries import entries
from ups.latents.key import ENCODED_SPLITS
from ups.latents.prune import remove
from ups.pipeline.phases import stage_splits
from ups.progress import logged


@pytest.fixture
def store(store_env):
    with closing(ObjectStore()) as client:
        yield client


@pytest.fixture
def built(tiny_config, store, tmp_path):
    """`built(sources)`: a config whose entry was built of these objects, which are gone again."""

    def make(sources):
        config = tiny_config(data__root=str(tmp_path / "data"), data__sources=sources)
        staged = stage_splits(config, SPLITS, store, logged)["burgers1d"]
        entry = ensure(config, staged)
        shutil.rmtree(tmp_path / "data")
        return config, entry

    return make


@pytest.fixture
def upload(store, request):
    def put(path, name):
        store.upload(path, "tiny", f"{request.node.originalname}/{name}")
        return {"key": f"{request.node.originalname}/{name}", "bucket": "tiny"}

    return put


def found(config, store):
    return find_cached(config, store, threading.Event())


def test_what_the_manifest_says_is_enough_to_find_an_entry(built, store, bucket_sources):
    config, entry = built(bucket_sources)
    cached = found(config, store)
    assert cached.keys == {"burgers1d": entry.config_hash}
    assert {s.split for of in cached.sources["burgers1d"].values() for s in of} == {"train", "val"}
    assert not found(
        config.model_copy(update={"latent": config.latent.model_copy(update={"dim": 4})}), store
    ).keys


def test_an_entry_of_many_objects_is_found_without_a_request_for_each(
    built, store, bucket_sources, monkeypatch
):
    config, entry = built(bucket_sources)
    monkeypatch.setattr(lookup, "LEAST", 2)
    monkeypatch.setattr(ObjectStore, "head", lambda *_: pytest.fail("asked about one of them"))
    assert found(config, store).keys == {"burgers1d": entry.config_hash}


def test_local_files_beside_objects_do_not_keep_an_entry_from_being_found(
    built, store, bucket_sources, tiny_data
):
    rows = {"path": str(tiny_data / TINY_FILE.format("train")), "rows": [0, 4]}
    config, entry = built({**bucket_sources, "val": [rows]})
    cached = found(config, store)
    assert cached.keys == {"burgers1d": entry.config_hash}
    assert [s.is_here for s in cached.sources["burgers1d"]["val"]] == [True]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_that_is_to_build_its_entry_anew_does_not_go_without_its_files(
    built, store, bucket_sources, overwrite
):
    config, _ = built(bucket_sources)
    ahead = look(config, store, threading.Event(), logged, overwrite=overwrite)
    assert isinstance(ahead, Cached) != overwrite


def test_files_whose_name_alone_tells_their_parameter_are_found_too(
    built, store, upload, tiny_data, tmp_path
):
    sources = {}
    for split in SPLITS:
        path = tmp_path / f"Sols_Nu0.01_{split}.h5"
        shutil.copy(tiny_data / TINY_FILE.format(split), path)
        with h5py.File(path, "r+") as file:
            del file.attrs["Nu"]
        sources[split] = [upload(path, path.name)]
    config, entry = built(sources)
    cached = found(config, store)
    assert cached.keys == {"burgers1d": entry.config_hash}
    assert cached.sources["burgers1d"]["train"][0].parameter == 0.01


def test_a_parameter_of_the_config_finds_the_entry_unless_it_is_of_another(
    built, store, bucket_sources, tmp_path, tiny_config
):
    config, entry = built(bucket_sources)  # whose files hold 0.02

    def with_parameter(value):
        of_files = {"data__root": str(tmp_path / "data"), "data__sources": bucket_sources}
        return tiny_config(data__parameter={"nu": value}, **of_files)

    assert found(with_parameter(0.02), store).keys == {"burgers1d": entry.config_hash}
    assert not found(with_parameter(0.03), store).keys


def test_an_object_that_changes_before_it_is_needed_again_ends_the_run(
    built, store, upload, tiny_data
):
    places = {s: [upload(tiny_data / TINY_FILE.format(s), f"{s}.h5")] for s in SPLITS}
    config, _ = built(places)
    sources = found(config, store).sources["burgers1d"]
    assert remove(*[entry for entry in entries(config.training.latent_cache_dir) if entry.current])
    upload(tiny_data / TINY_FILE.format("test"), "val.h5")
    with pytest.raises(DataError, match="val.h5 has changed since the run began: .*; run again"):
        ensure(config, sources)
    assert set(sources) == set(ENCODED_SPLITS)


def test_without_a_manifest_nothing_is_found(built, store, upload, s3_client, tiny_data, request):
    places = {s: [upload(tiny_data / TINY_FILE.format(s), f"{s}.h5")] for s in SPLITS}
    config, _ = built(places)
    s3_client.delete_object(Bucket="tiny", Key=f"{request.node.originalname}/manifest.json")
    with closing(ObjectStore()) as another:
        assert not found(config, another).keys
