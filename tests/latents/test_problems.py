"""Several tasks: an entry each, shared with other configs, and one split of all of them."""

import math
import os

import h5py
import pytest
import torch

from ups.config import Features
from ups.data.generate import generate
from ups.data.sources import stage
from ups.errors import DataError
from ups.latents import loader, store
from ups.latents.build import ensure
from ups.latents.datasets import GridLatentPairDataset, LegacyCacheDataset, PreloadedCacheDataset
from ups.latents.key import key_fields
from ups.latents.on_disk import DiskCacheDataset, MappedCacheDataset
from ups.pipeline.phases import build_cache, build_caches, load_latents

NUM_TRAIN = 20 + 7 + 12
INDEX = torch.tensor([38, 3, 0, 26, 27, 17, 20])  # of all tasks, out of order


@pytest.fixture
def load_tasks(stage_tasks):
    """`load_tasks(config)`: the latents of all its tasks, by way of its features."""

    def load(config):
        sources, entries = stage_tasks(config), None
        if config.features.preload != "off":
            entries = {
                name: build_cache(own, sources[name]) for name, own in config.by_problem().items()
            }
        return load_latents(config, sources, entries)

    return load


@pytest.fixture
def build_all(stage_tasks):
    """`build_all(config)`: the sources of its tasks, and their entries."""

    def build(config):
        sources = stage_tasks(config)
        return sources, {n: ensure(own, sources[n]) for n, own in config.by_problem().items()}

    return build


TIERS = {
    "ram": {"features__preload": "ram"},
    "map": {"features__preload": "auto"},
    "disk": {"features__preload": "disk"},
    "on demand": {"features__preload": "off"},
    "legacy": {f"features__{k}": v for k, v in Features.legacy().model_dump().items()},
}


@pytest.fixture
def loaded(mixed_config, load_tasks):
    """Tier → latents of the three tasks, in float32, so that they can be compared."""
    return {
        tier: load_tasks(mixed_config(training__latent_cache_dtype="float32", **features))
        for tier, features in TIERS.items()
    }


def test_every_tier_gives_the_same_mixed_batches_with_the_same_conditions(loaded):
    tiers = {tier: latents.tier for tier, latents in loaded.items()}
    assert tiers == {**{tier: tier for tier in TIERS}, "map": "ram"}
    ram = loaded["ram"]
    assert isinstance(ram.train, PreloadedCacheDataset)
    assert isinstance(loaded["map"].train, MappedCacheDataset)
    assert type(loaded["disk"].train) is DiskCacheDataset
    assert isinstance(loaded["on demand"].train, GridLatentPairDataset)
    assert isinstance(loaded["legacy"].train, LegacyCacheDataset)
    for tier in ("map", "disk"):
        assert torch.equal(loaded[tier].train.batch(INDEX), ram.train.batch(INDEX))
    assert len(loaded["legacy"].train._paths) == NUM_TRAIN  # a file per trajectory
    assert ram.train.z_NTKD.shape == (NUM_TRAIN, 11, 8, 16)  # one tensor of all tasks
    frames = torch.stack(
        [torch.tensor([first, first + 1, first + 3]) for first in range(len(INDEX))]
    )
    every = ram.train.batch(INDEX)
    for latents in loaded.values():
        assert len(latents.train) == NUM_TRAIN
        assert latents.train.num_frames == 11
        expected = torch.stack([z_TKD[own] for z_TKD, own in zip(every, frames, strict=True)])
        for _ in range(2):  # from the disk, a chunk is checked before the second time
            picked = latents.train.batch(INDEX, frames)
            assert torch.allclose(picked, expected, atol=1e-6)
        assert torch.allclose(latents.train.batch(INDEX), ram.train.batch(INDEX), atol=1e-6)
        assert torch.equal(latents.train.condition_NC, ram.train.condition_NC)
        assert latents.val_ranges == ram.val_ranges


def test_each_trajectory_has_the_condition_of_its_problem(loaded):
    conditions = loaded["ram"].train.condition_NC
    time = math.log10(0.01 * 4) + 1
    expected = {
        range(20): [1, math.log10(0.02) / 2 + 1, 0, 0, time],
        range(20, 27): [1, math.log10(0.1) / 2 + 1, 0, 0, time],
        range(27, 39): [0, 0, 1, math.log10(0.5), time],
    }
    for rows, condition in expected.items():
        assert torch.allclose(conditions[list(rows)], torch.tensor(condition).float(), atol=1e-6)


def test_each_trajectory_is_decoded_by_the_encoder_of_its_problem(loaded, mixed_data):
    latents = loaded["ram"]
    assert latents.val_ranges == {
        "burgers1d": range(5),
        "burgers1d_nu0.1": range(5, 8),
        "advection1d": range(8, 12),
    }
    for task, rows in latents.val_ranges.items():
        with h5py.File(mixed_data / f"{task}_val.h5") as file:
            fields = torch.from_numpy(file["tensor"][:, ::4])
        decoded = latents.encoders[task].decode(latents.val.batch(torch.tensor(list(rows))))
        error = (decoded - fields).norm() / fields.norm()
        assert error < 0.02, task


def test_a_problem_shares_its_entry_with_its_own_config_and_the_manifest_names_its_parameter(
    mixed_config, tiny_config, build_all, stage_all
):
    alone = tiny_config()
    first = ensure(alone, stage_all(alone))
    config = mixed_config()
    _, entries = build_all(config)
    assert entries["burgers1d"].reused
    assert entries["burgers1d"].config_hash == first.config_hash
    assert not entries["advection1d"].reused
    assert len({entry.config_hash for entry in entries.values()}) == 3
    manifests = store.list_entries(config.training.latent_cache_dir)
    found = {(m.key_fields["task"], *m.files[0].parameters) for m in manifests}
    assert found == {("burgers1d", "nu"), ("advection1d", "beta")}


def test_a_miss_is_explained_by_an_entry_of_the_same_equation(mixed_config, stage_tasks):
    config = mixed_config()
    sources = stage_tasks(config)
    own = config.by_problem()
    ensure(own["burgers1d"], sources["burgers1d"])
    assert ensure(own["advection1d"], sources["advection1d"]).changed == ()
    other = mixed_config(latent__dim=8).by_problem()["advection1d"]
    changed = ensure(other, sources["advection1d"]).changed
    assert changed == ("latent.dim 8, the cached entry has 16",)


def test_a_miss_reads_no_more_manifests_of_a_large_cache_than_of_the_newest_entries(
    mixed_config, stage_tasks, monkeypatch
):
    own, read = {}, []
    for dim in (4, 8, 16):
        own[dim] = mixed_config(latent__dim=dim).by_problem()["advection1d"]
        sources = stage_tasks(own[dim])["advection1d"]
        entry = ensure(own[dim], sources)
        pointer = own[dim].training.latent_cache_dir / entry.config_hash / store.POINTER_NAME
        os.utime(pointer, (dim, dim))
    read_manifest = store.read_manifest
    monkeypatch.setattr(store, "read_manifest", lambda at: read.append(at) or read_manifest(at))
    monkeypatch.setattr(store, "NUM_COMPARED", 2)
    wanted = {**key_fields(own[4], sources), "dtype": "float32"}
    changed = store.explain_miss(own[4].training.latent_cache_dir, wanted)
    assert changed[-1] == "latent.dim 4, the cached entry has 8"
    assert len(read) == 2


def test_entries_with_other_chunks_are_read_together(mixed_config, stage_tasks):
    config = mixed_config()
    sources, entries = stage_tasks(config), {}
    for rows, (name, own) in enumerate(config.by_problem().items(), 2):
        training = own.training.model_copy(update={"encode_batch_size": rows**2})
        sized = own.model_copy(update={"training": training})
        entries[name] = ensure(sized, sources[name])
    latents = loader.load(config, entries, sources, device="cpu")
    again = loader.load(mixed_config(features__preload="disk"), entries, sources, device="cpu")
    every = torch.arange(NUM_TRAIN)
    assert torch.equal(latents.train.batch(every), again.train.batch(every))
    latents.close()
    again.close()


def test_damage_of_one_entry_rebuilds_that_one_alone(mixed_config, build_all, caplog):
    config = mixed_config()
    sources, entries = build_all(config)
    cache_dir, damaged = config.training.latent_cache_dir, entries["advection1d"]
    directory = store.entry_dir(cache_dir, damaged.config_hash) / damaged.generation
    (directory / "val_000.safetensors").write_bytes(b"damaged")
    latents = loader.load(config, entries, sources, device="cpu")
    assert len(latents.val) == 12
    assert "building it anew" in caplog.text
    now = [
        store.current_generation(store.entry_dir(cache_dir, entry.config_hash)) == entry.generation
        for entry in entries.values()
    ]
    assert dict(zip(entries, now, strict=True)) == {n: n != "advection1d" for n in entries}
    latents.close()


def test_a_budget_below_all_entries_removes_none_of_the_run(mixed_config, stage_tasks, caplog):
    config = mixed_config(training__latent_cache_max_gb=1e-6)
    staged = stage_tasks(config)
    entries = build_caches(config, staged, lambda *_: None, overwrite=False)
    latents = loader.load(config, entries, {}, device="cpu")
    assert len(latents.train) == NUM_TRAIN
    assert "which are in use or just built" in caplog.text
    latents.close()


def test_all_entries_are_held_until_the_latents_are_closed(mixed_config, load_tasks):
    config = mixed_config()
    latents = load_tasks(config)
    generations = [
        store.generation_dir(config.training.latent_cache_dir, manifest)
        for manifest in store.list_entries(config.training.latent_cache_dir)
    ]
    assert len(generations) == 3
    assert not any(store.remove_unused(directory) for directory in generations)
    latents.close()
    assert all(store.remove_unused(directory) for directory in generations)


@pytest.fixture
def longer(mixed_data, tmp_path):
    """A folder where advection has 61 frames instead of 41."""
    for path in mixed_data.glob("burgers1d*"):
        if path.suffix == ".h5":
            (tmp_path / path.name).hardlink_to(path)
    for seed, split in enumerate(("train", "val", "test")):
        path = tmp_path / f"advection1d_{split}.h5"
        size = {"grid_points": 256, "num_frames": 61, "t_end": 0.6}
        generate(path, 3, "advection1d", 0.5, seed=seed, **size)
    return str(tmp_path)


@pytest.mark.parametrize("tier", ["ram", "on demand", "legacy"])
def test_problems_with_other_numbers_of_frames_after_the_stride_are_refused_by_name(
    mixed_config, load_tasks, longer, tier
):
    config = mixed_config(data__root=longer, **TIERS[tier])
    with pytest.raises(
        DataError, match=r"of burgers1d have 41 frames and those of advection1d 61: .* 11 and 16"
    ):
        load_tasks(config)
    config = mixed_config(data__root=longer, training__time_stride=40, **TIERS[tier])
    latents = load_tasks(config)  # frames 0 and 40 of each
    assert latents.train.batch(torch.tensor([0])).shape[1] == 2


def test_a_problem_on_another_grid_is_refused(mixed_config, mixed_data, tmp_path):
    path = tmp_path / "advection1d_train.h5"
    size = {"grid_points": 128, "num_frames": 41, "t_end": 0.4}
    generate(path, 3, "advection1d", 0.5, seed=0, **size)
    given = mixed_config(data__root=str(tmp_path), data__task=["advection1d"])
    config = given.only_problem()
    staged = {split: stage(config, "train", None) for split in ("train", "val")}
    with pytest.raises(DataError, match="advection1d_train.h5.* has 128 grid points, expected 256"):
        ensure(config, staged)
