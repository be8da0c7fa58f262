"""Tiers: the same batches from each, and the step down where one does not fit."""

import logging
import math

import pytest
import torch

from ups.errors import CacheDamaged, DataError
from ups.latents import legacy, loader, store, tiers
from ups.latents.build import ensure
from ups.latents.datasets import (
    DiskCacheDataset,
    GridLatentPairDataset,
    LegacyCacheDataset,
    PreloadedCacheDataset,
)
from ups.pipeline import build_cache, load_latents

INDEX = torch.tensor([3, 0, 17])


@pytest.fixture
def tier(tiny_config, stage_all):
    """`tier(preload)`: the latents as one value of features.preload loads them."""

    def load(**overrides):
        config = tiny_config(**overrides)
        sources = stage_all(config)
        entry = None if config.features.preload == "off" else build_cache(config, sources)
        entries = None if entry is None else {"burgers1d": entry}
        return load_latents(config, {"burgers1d": sources}, entries)

    return load


def test_ram_disk_and_on_demand_give_the_same_batches(tier):
    in_ram, on_disk, on_demand = (
        tier(features__preload=preload, training__latent_cache_dtype="float32").train
        for preload in ("ram", "disk", "off")
    )
    assert isinstance(in_ram, PreloadedCacheDataset)
    assert isinstance(on_disk, DiskCacheDataset)
    assert isinstance(on_demand, GridLatentPairDataset)
    batch = in_ram.batch(INDEX)
    assert batch.shape == (3, 11, 8, 16)  # 41 frames at stride 4
    assert torch.equal(batch, on_disk.batch(INDEX))
    assert torch.allclose(batch, on_demand.batch(INDEX), atol=1e-6)
    expected = torch.tensor([math.log10(0.02) / 2 + 1, math.log10(0.04) + 1]).expand(20, 2)
    for data in (in_ram, on_disk, on_demand):
        assert torch.allclose(data.condition_NC, expected)


def test_legacy_mode_gives_the_same_batches_from_a_file_per_trajectory(tier, tiny_config):
    features = {f"features__{k}": v for k, v in legacy_features().items()}
    latents = tier(**features)
    assert isinstance(latents.train, LegacyCacheDataset)
    assert len(list(legacy.split_dir(tiny_config(), "train").glob("sample_*.pt"))) == 20
    assert torch.equal(latents.train.batch(INDEX), tier().train.batch(INDEX))


def legacy_features():
    from ups.config import Features

    return Features.legacy().model_dump()


def test_bfloat16_is_read_back_as_stored(tier):
    in_ram, on_disk = (
        tier(features__preload=p, training__latent_cache_dtype="bfloat16").train
        for p in ("ram", "disk")
    )
    assert in_ram.batch(INDEX).dtype == torch.bfloat16
    assert torch.equal(in_ram.batch(INDEX), on_disk.batch(INDEX))


def test_too_little_ram_falls_back_to_disk_and_says_so(tier, monkeypatch, caplog):
    monkeypatch.setattr(tiers, "available_ram_mb", lambda: 0.01)
    with caplog.at_level(logging.WARNING, "ups"):
        assert tier().tier == "disk"
    assert "do not fit into the" in caplog.text
    assert "reading them from disk instead" in caplog.text


def test_gpu_wanted_without_one_falls_back_to_ram_and_says_so(tier, caplog):
    with caplog.at_level(logging.WARNING, "ups"):
        assert tier(features__preload="gpu", training__device="cpu").tier == "ram"
    assert "trying RAM instead" in caplog.text


def test_damage_that_stat_does_not_show_is_found_and_rebuilt_once(tiny_config, stage_all, caplog):
    config = tiny_config()
    sources = stage_all(config)
    entry = ensure(config, sources)
    directory = store.entry_dir(config.training.latent_cache_dir, entry.config_hash)
    path = directory / entry.generation / "val_000.safetensors"
    flip_a_bit_behind_the_stamp(path)
    latents = load_one(config, entry, sources)
    assert "building it anew" in caplog.text
    assert len(latents.val) == 5
    assert list(directory.glob("damaged-*"))


def test_damage_that_comes_back_is_an_error(tiny_config, stage_all, monkeypatch):
    config = tiny_config()
    sources = stage_all(config)
    entry = ensure(config, sources)
    monkeypatch.setattr(store, "check_chunk", always_damaged)
    with pytest.raises(CacheDamaged, match="made up"):
        load_one(config, entry, sources)


def load_one(config, entry, sources):
    return loader.load(config, {"burgers1d": entry}, {"burgers1d": sources}, device="cpu")


def always_damaged(*_):
    raise CacheDamaged("made up")


def flip_a_bit_behind_the_stamp(path):
    import os

    stat = path.stat()
    with path.open("r+b") as file:
        file.seek(stat.st_size - 3)
        byte = file.read(1)[0]
        file.seek(stat.st_size - 3)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_horizon_longer_than_a_trajectory_is_refused(tier):
    with pytest.raises(DataError, match="have 41 frames; .* need 49"):
        tier(training__rollout_horizon=12)


def test_an_entry_that_is_loaded_is_not_removed_before_it_is_closed(tiny_config, stage_all):
    config = tiny_config()
    sources = stage_all(config)
    entry = ensure(config, sources)
    latents = load_one(config, entry, sources)
    directory = store.entry_dir(config.training.latent_cache_dir, entry.config_hash)
    assert not store.remove_unused(directory / entry.generation)
    latents.close()
    assert store.remove_unused(directory / entry.generation)


def test_damage_after_a_rebuild_by_others_is_rebuilt_too(tiny_config, stage_all):
    config = tiny_config()
    sources = stage_all(config)
    first = ensure(config, sources)  # what Prefect remembers
    newer = ensure(config, sources, overwrite=True)
    directory = store.entry_dir(config.training.latent_cache_dir, first.config_hash)
    flip_a_bit_behind_the_stamp(directory / newer.generation / "train_000.safetensors")
    assert len(load_one(config, first, sources).train) == 20


def test_legacy_mode_does_not_read_its_samples_before_they_are_wanted(
    tiny_config, stage_all, monkeypatch
):
    config = tiny_config(**{f"features__{k}": v for k, v in legacy_features().items()})
    sources = stage_all(config)
    entry = build_cache(config, sources)
    reads = []
    real = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: reads.append(a) or real(*a, **k))
    latents = load_latents(config, {"burgers1d": sources}, {"burgers1d": entry})
    assert reads == []
    latents.train.batch(INDEX)
    assert len(reads) == 3
