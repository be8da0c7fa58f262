"""Without a manifest the sources stream, too, and the entry's key is known in the end."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing

import pytest
import torch

from tests.data.objects import QUICK
from tests.latents.test_stream import finished, locks
from tests.live import wait_until
from ups.config import SPLITS
from ups.data.objectstore import ObjectStore
from ups.data.stamps import read_stamp
from ups.errors import Interrupted
from ups.latents import journal, store
from ups.latents.scout import scout
from ups.pipeline.phases import build_caches, load_latents, stage_splits
from ups.progress import logged


@pytest.fixture
def bare(sources, s3_client):
    """The sources as objects of a test's own, without a manifest."""
    given = sources()
    prefix = given["train"][0]["key"].rpartition("/")[0]
    s3_client.delete_object(Bucket="tiny", Key=f"{prefix}/manifest.json")
    return given


@pytest.fixture
def few(bare):
    """With which the encoder is fitted early, and one range comes after the other."""
    one_by_one = {"features__parallel_downloads": False, "encoder__fit_trajectories": 4}
    return {"data__sources": bare, **one_by_one}


def in_parts(_, headers):
    """ETags as of objects that were uploaded in parts: no MD5."""
    for name in headers:
        if name.lower() == "etag":
            headers[name] = f'"{headers[name][1:-1]}-2"'


def plain_latents(config, tmp_path):
    """The entry that is built of downloads, and its latents."""
    other_dir = {"latent_cache_dir": tmp_path / "plain"}
    plain = config.model_copy(update={"training": config.training.model_copy(update=other_dir)})
    with closing(ObjectStore()) as client:
        staged = stage_splits(plain, SPLITS, client, logged)
    entries = build_caches(plain, staged, logged, overwrite=False)
    return entries["burgers1d"], load_latents(plain, staged, entries)


def assert_alike(config, stream, tmp_path):
    """The stream's entry has the key, the place and the latents of one that is built of files."""
    entry, expected = plain_latents(config, tmp_path)
    with closing(expected):
        for name in ("train", "val"):
            one, other = getattr(stream.latents, name), getattr(expected, name)
            every_N = torch.arange(len(other))
            assert torch.equal(one.batch(every_N), other.batch(every_N))
        assert stream.latents.key_fields == expected.key_fields
    assert stream.result()["burgers1d"].config_hash == entry.config_hash
    assert stream.scouted.keys == {"burgers1d": entry.config_hash}
    (found,) = [path for path in config.training.latent_cache_dir.iterdir() if path.is_dir()]
    assert found.name == entry.config_hash
    assert store.valid_generation(found.parent, found.name)


@pytest.mark.parametrize("keep", [True, False])
def test_what_streams_without_a_manifest_has_the_key_and_the_latents_of_downloads(
    streaming, few, proxy, tmp_path, caplog, keep
):
    proxy.faults.edit = in_parts
    config, stream = streaming(**few, data__keep_sources=keep)
    provisional = stream.scouted.keys["burgers1d"]
    assert stream.result()
    staged = [source for of in finished(stream) for source in of]
    assert not any(source.is_verified for source in staged)
    assert "not verified: no manifest has its sha256" in caplog.text
    if keep:
        for source in staged:
            assert read_stamp(source.path).sha256 == source.sha256
    stream.scouted.remove_let_go()
    assert locks(config) == []
    assert bool(list(config.data_root.rglob("*.h5"))) == keep
    assert_alike(config, stream, tmp_path)
    assert provisional != stream.scouted.keys["burgers1d"]


def test_a_run_that_is_cut_short_goes_on_from_what_has_arrived_and_is_encoded(
    streaming, few, proxy, tmp_path, caplog
):
    gate, asked = threading.Event(), []
    caplog.set_level("INFO", "ups")

    def stall(path):
        asked.append(path)
        return "val" in path and len(asked) > 3 and gate.wait(20) and None

    proxy.faults.on_range = stall

    def num_encoded():
        noted = (tmp_path / "cache").glob(f"*/building-*/{journal.NAME}")
        return sum(len(path.read_text().splitlines()) - 1 for path in noted)

    config, stream = streaming(**few)
    wait_until(lambda: num_encoded() == -(-20 // config.training.encode_batch_size))
    wait_until(lambda: "downloaded s3" in caplog.text)  # all of train
    streaming.close()
    gate.set()
    encoded = num_encoded()
    assert not list(config.data_root.rglob("*.h5"))
    proxy.faults.on_range = lambda _: None
    config, stream = streaming(**few)
    assert stream.result()
    assert f"{encoded} chunks are done" in caplog.text
    train, _, _ = finished(stream)
    assert train[0].fetched_bytes == 0
    assert_alike(config, stream, tmp_path)


def test_where_the_entry_is_there_under_its_key_that_is_taken(streaming, few, tmp_path):
    config, stream = streaming(**few)
    (first,) = stream.result().values()
    streaming.close()
    shutil.rmtree(config.data_root)
    _, stream = streaming(**few)
    (again,) = stream.result().values()
    assert again.reused
    assert again.generation == first.generation
    assert_alike(config, stream, tmp_path)


@pytest.mark.parametrize("keep", [True, False])
def test_what_lies_aside_is_handed_out_only_where_it_is_read_as_it_comes(
    tiny_config, few, proxy, store_env, tmp_path, caplog, keep
):
    proxy.faults.edit = in_parts
    caplog.set_level("INFO", "ups")
    given = {"data__root": str(tmp_path / "data"), "features__stream": "on", **few}
    config = tiny_config(**given, data__endpoint_url=proxy.url, data__keep_sources=keep)
    client = ObjectStore(proxy.url, retry=QUICK)
    scouted = scout(config, client, threading.Event(), logged)
    with closing(client), closing(scouted), ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(scouted.finished, "burgers1d", "train")
        wait_until(lambda: "downloaded s3" in caplog.text)
        assert wait([waiting], 0.3).not_done
        scouted.give_up()
        with pytest.raises(Interrupted, match="all has to be there first"):
            waiting.result(10)
