"""Entries of the cache in a bucket: pushed, pulled, raced for, and damaged."""

import logging
import threading
from contextlib import closing

import pytest

from ups.background import at_once
from ups.errors import CacheError
from ups.latents import store
from ups.latents.build import ensure
from ups.latents.entries import entries
from ups.latents.pull import Pull, pull_whole
from ups.latents.push import push
from ups.latents.remote import Remote
from ups.latents.remote_entries import prune_remote, remote_entries
from ups.latents.sharing import Hits, Sharing
from ups.progress import logged


@pytest.fixture
def machine(any_s3, tiny_config, tmp_path):
    """`machine(name)`: the config of a machine with a cache of its own, and what is shared."""

    def make(name, **overrides):
        given = {
            "training__latent_cache_dir": str(tmp_path / name),
            "cache__remote": f"s3://{any_s3}/{tmp_path.name}",
            "data__endpoint_url": None,
        }
        return tiny_config(**{**given, **overrides})

    return make


@pytest.fixture
def built(machine, stage_all):
    """`built(name)`: such a config, and the entry that was built there."""

    def make(name):
        config = machine(name)
        return config, ensure(config, stage_all(config))

    return make


@pytest.fixture
def remote(machine):
    with closing(Remote.opened(machine("nobody"))) as opened:
        yield opened


def files_of(config, key):
    manifest = store.open_current(config.training.latent_cache_dir, key)
    directory = store.generation_dir(config.training.latent_cache_dir, manifest)
    return {file.name: (directory / file.name).read_bytes() for file in manifest.files}


def pull_here(config, remote, key):
    fetching = Pull(remote, remote.find(key), config.training.latent_cache_dir)
    return pull_whole(fetching)


def test_what_is_pushed_is_pulled_to_the_same_bytes_and_pushed_once(built, machine, remote):
    config, entry = built("one")
    key = entry.config_hash
    assert remote.find(key) is None
    assert not push(remote, config, key).was_there
    other = machine("other")
    pulled = pull_here(other, remote, key)
    assert pulled.num_bytes == entry.num_bytes
    assert files_of(other, key) == files_of(config, key)
    assert store.valid_generation(other.training.latent_cache_dir, key) == entry.generation
    listed = remote.folder.listed()
    for again in (config, other):
        assert push(remote, again, key).was_there
    assert remote.folder.listed() == listed


def test_of_two_who_push_at_once_both_stay_whole_and_readers_see_one(built, machine, remote):
    both = [built("one"), built("two")]
    key = both[0][1].config_hash
    at_once(lambda of: push(remote, of[0], key), both, 2, None, "the store")
    assert remote.generation(key) in {entry.generation for _, entry in both}
    for _, entry in both:  # whichever the pointer names
        assert remote.manifest(key, entry.generation).num_bytes == entry.num_bytes
    reader = machine("reader")
    pull_here(reader, remote, key)
    assert files_of(reader, key) == files_of(both[0][0], key) == files_of(both[1][0], key)
    # The other one is what a prune removes, once nobody can be about to point to it.
    assert prune_remote(remote, older_than_s=3600) == []
    (gone,) = prune_remote(remote, older_than_s=-1)
    assert gone.generation != remote.generation(key)
    assert [(e.current, e.generation) for e in remote_entries(remote)] == [
        (True, remote.generation(key))
    ]
    pull_here(machine("late"), remote, key)


def cut(folder, entry, key):
    name = f"{entry}/train_000.safetensors"
    folder.put(name, folder.get(name)[:-100])


def flip(folder, entry, key):
    name = f"{entry}/train_000.safetensors"
    content = bytearray(folder.get(name))
    content[5000] ^= 1
    folder.put(name, bytes(content))


def take_away(folder, entry, key):
    folder.remove([f"{entry}/val_000.safetensors"])


def name_another(folder, entry, key):
    folder.put(f"{key}/{store.POINTER_NAME}", store.pointer_to("20260101T000000-000000"))


def tear_the_pointer(folder, entry, key):
    name = f"{key}/{store.POINTER_NAME}"
    folder.put(name, folder.get(name)[:-4])


def tear_the_manifest(folder, entry, key):
    name = f"{entry}/{store.MANIFEST_NAME}"
    folder.put(name, folder.get(name)[:-9])


FAULTS = (cut, flip, take_away, name_another, tear_the_pointer, tear_the_manifest)


def test_whatever_is_damaged_there_is_a_miss_with_one_line_and_who_builds_it_mends_it(
    built, machine, remote, stage_all, caplog
):
    config, entry = built("one")
    key, problem = entry.config_hash, config.problem.name
    push(remote, config, key)
    for damage in FAULTS:
        damage(remote.folder, f"{key}/{remote.generation(key)}", key)
        reader = machine(damage.__name__)
        sharing, hits = Sharing(reader), Hits(remote)
        caplog.clear()
        hits.manifests[problem] = sharing.manifest(remote, key)
        if hits.manifests[problem] is not None:
            assert not sharing.pull_one(hits, problem, reader, threading.Event(), logged)
        (said,) = [line.message for line in caplog.records if line.levelno >= logging.WARNING]
        assert " is a miss, the latents are built here: " in said, damage
        assert store.valid_generation(reader.training.latent_cache_dir, key) is None
        built_here = ensure(reader, stage_all(reader))
        sharing.push(None, {problem: key}, threading.Event())
        assert remote.generation(key) == built_here.generation, damage
        pull_here(machine(f"after {damage.__name__}"), remote, key)


def test_a_pull_that_was_killed_is_no_entry_and_the_next_asks_for_the_rest_alone(
    built, machine, remote
):
    config, entry = built("one")
    key = entry.config_hash
    push(remote, config, key)
    other = machine("other")
    cache_dir = other.training.latent_cache_dir
    cut_short = Pull(remote, remote.find(key), cache_dir)
    cut_short.begin()
    cut_short.fetch(cut_short.parts[0])
    with pytest.raises(CacheError, match="this process builds"):
        pull_here(other, remote, key)
    cut_short.close()  # as the end of its process does, too
    assert store.valid_generation(cache_dir, key) is None
    assert [found.state for found in entries(cache_dir)] == ["partial"]
    pulled = pull_here(other, remote, key)
    assert pulled.num_bytes == entry.num_bytes - cut_short.pulled.num_bytes
    assert files_of(other, key) == files_of(config, key)


def test_keys_that_may_write_and_not_list_push_although_what_is_missing_looks_forbidden(
    tiny_config, stage_all, store_env, proxy, tmp_path, s3_client
):
    config = tiny_config(cache__remote="s3://unlisted/team", data__endpoint_url=proxy.url)
    key = ensure(config, stage_all(config)).config_hash
    s3_client.create_bucket(Bucket="unlisted")
    proxy.faults.refuse = (403, "AccessDenied", "as AWS says without s3:ListBucket")
    with closing(Remote.opened(config)) as remote:
        assert not push(remote, config, key).was_there
        proxy.faults.refuse = None
        assert remote.find(key) is not None
