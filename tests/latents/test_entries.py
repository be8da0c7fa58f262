"""Looking at entries: what each is, when it was used, and what is damaged in it."""

import errno
import logging
import os
import time
from unittest.mock import Mock

import pytest

from ups.errors import CacheError
from ups.latents import store
from ups.latents.build import ensure
from ups.latents.entries import entries, match_key, verify
from ups.latents.prune import plan_prune, remove

DAY = 86400


def test_an_entry_says_what_it_is_or_that_it_is_damaged_and_other_folders_are_none(build):
    config, entry = build()
    cache_dir = config.training.latent_cache_dir
    for name in (".prefect", "legacy", "0" * 11):
        (cache_dir / name / "x").mkdir(parents=True)
    (cache_dir / ("0" * 12)).write_text("a file")
    assert entries(cache_dir) == [entry]
    assert (entry.state, entry.current, entry.in_use) == ("complete", True, False)
    assert entry.summary == (
        "burgers1d ν 0.02, 8 tokens × 16, float16, 25 trajectories of 2 sources"
    )
    latents = 25 * 41 * 8 * 16 * 2
    assert latents < entry.num_bytes < latents + 40_000
    assert time.time() - entry.generated_at < 300
    assert entries(cache_dir / "nowhere") == []
    os.truncate(entry.directory / "val_000.safetensors", 5000)
    assert entries(cache_dir)[0].state == "damaged"
    (entry.directory / store.MANIFEST_NAME).write_text("{")
    (found,) = entries(cache_dir)
    assert (found.state, found.summary) == ("damaged", "no readable manifest")
    assert [removal.entry for removal in plan_prune(entries(cache_dir))] == [found]
    assert remove(found)


def test_loading_is_a_use_and_verifying_is_none(build, unused_for, stage_all):
    config, entry = build()
    cache_dir = config.training.latent_cache_dir
    unused_for(entry, DAY)
    assert verify(entry) == []
    assert time.time() - entries(cache_dir)[0].last_used_at > DAY - 60
    store.hold_current(cache_dir, entry.config_hash)[1].close()
    assert time.time() - entries(cache_dir)[0].last_used_at < 60
    unused_for(entry, DAY)
    assert ensure(config, stage_all(config)).reused
    assert time.time() - entries(cache_dir)[0].last_used_at < 60


def test_on_a_read_only_file_system_an_entry_is_held_and_its_use_goes_unnoted(
    build, monkeypatch, caplog
):
    config, entry = build()
    real = os.open

    def read_only(path, flags=os.O_RDWR, *_, **__):
        if flags & (os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, "Read-only file system")
        return real(path, flags)

    with monkeypatch.context() as patch, caplog.at_level(logging.DEBUG, "ups"):
        patch.setattr(os, "utime", read_only)
        patch.setattr(os, "open", read_only)
        _, hold = store.hold_current(config.training.latent_cache_dir, entry.config_hash)
    assert caplog.text.count("is not noted: [Errno 30] Read-only file system") == 1
    assert not remove(entry)
    hold.close()
    assert remove(entry)


def test_verify_names_damaged_chunks_files_that_are_gone_or_no_latents_and_a_wrong_manifest(
    build, flip_bit
):
    config, entry = build()
    manifest = store.read_manifest(entry.directory)
    train, val = manifest.files
    path = entry.directory / store.MANIFEST_NAME
    text = path.read_text()
    path.write_text(text.replace('"dim": 16', '"dim": 17'))
    assert [d.file for d in verify(entry)] == [store.MANIFEST_NAME]
    path.write_text(text)
    row = 9  # of chunks of 4
    flip_bit(entry.directory / train.name, train.data_offset + row * train.row_bytes)
    flip_bit(entry.directory / train.name, train.data_offset + train.num_bytes - 1)
    flip_bit(entry.directory / val.name, val.data_offset)
    read = []
    damage = verify(entry, lambda done, total: read.append((done, total)))
    assert [(d.file, d.chunk) for d in damage] == [(train.name, 2), (train.name, 4), (val.name, 0)]
    assert f"{train.name}: chunk 2 has checksum" in damage[0].reason
    assert read[-1] == (manifest.num_bytes, manifest.num_bytes)
    assert entries(config.training.latent_cache_dir)[0].state == "complete"  # by its sizes

    (entry.directory / train.name).unlink()
    flip_bit(entry.directory / val.name, 20)
    damage = verify(entry)
    assert [(d.file, d.chunk) for d in damage] == [(train.name, None), (val.name, None)]
    assert "is gone" in damage[0].reason
    assert "header" in damage[1].reason

    path.write_text("{")
    assert [d.file for d in verify(entry)] == [store.MANIFEST_NAME]


def test_a_verify_that_is_broken_off_lets_go_of_the_entry(build):
    _, entry = build()
    with pytest.raises(KeyboardInterrupt, match="Ctrl-C"):
        verify(entry, Mock(side_effect=KeyboardInterrupt("Ctrl-C")))
    assert remove(entry)
    with pytest.raises(CacheError, match="is gone"):
        verify(entry)


def test_a_key_is_found_by_its_beginning(build):
    config, entry = build()
    others = [entry.model_copy(update={"config_hash": f"{number:012x}"}) for number in (1, 2)]
    found = [entry, *others]
    assert match_key(found, entry.config_hash[:5]) == entry.config_hash
    with pytest.raises(CacheError, match="'x': there are 000000000001, 000000000002, "):
        match_key(found, "x")
    with pytest.raises(CacheError, match="beginning of 000000000001, 000000000002: give more"):
        match_key(found, "0000")
    with pytest.raises(CacheError, match="no cache entry ''"):
        match_key([entry], "")
    with pytest.raises(CacheError, match="there are none"):
        match_key([], "0")
