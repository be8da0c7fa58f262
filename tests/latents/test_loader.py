"""Tiers: the same batches from each, and the step down where one does not fit."""

import logging
import math
import os
import time
from contextlib import nullcontext
from threading import Event
from unittest.mock import Mock

import pytest
import torch

from ups.config import Features
from ups.data.pdebench import TrajectoryFile
from ups.errors import CacheDamaged, DataError
from ups.latents import latent_file, legacy, loader, store, tiers
from ups.latents.build import ensure
from ups.latents.datasets import PreloadedCacheDataset
from ups.latents.encode import fit_encoder
from ups.latents.on_disk import MappedCacheDataset
from ups.latents.partly_resident import keep_part
from ups.pipeline.phases import build_cache, load_latents
from ups.training.step import Feed, epoch_order

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


def test_bfloat16_is_read_back_as_stored_and_one_equation_has_two_conditions(tier):
    in_ram, on_disk, on_demand = (
        tier(features__preload=preload, training__latent_cache_dtype="bfloat16").train
        for preload in ("ram", "disk", "off")
    )
    batch = in_ram.batch(INDEX)
    assert (batch.shape, batch.dtype) == ((3, 11, 8, 16), torch.bfloat16)  # 41 frames, stride 4
    assert torch.equal(batch, on_disk.batch(INDEX))
    expected = torch.tensor([math.log10(0.02) / 2 + 1, math.log10(0.04) + 1]).expand(20, 2)
    for data in (in_ram, on_disk, on_demand):
        assert torch.allclose(data.condition_NC, expected)


def test_no_gpu_falls_back_to_ram_and_too_little_ram_to_disk_which_is_said(
    tier, monkeypatch, caplog
):
    with caplog.at_level(logging.WARNING, "ups"):
        assert tier(features__preload="gpu", training__device="cpu").tier == "ram"
    assert "trying RAM instead" in caplog.text
    monkeypatch.setattr(tiers, "available_ram_mb", lambda: 0.01)
    with caplog.at_level(logging.WARNING, "ups"):
        assert tier().tier == "disk"
    assert "do not fit into the" in caplog.text
    assert "reading them from disk instead" in caplog.text


def test_latents_larger_than_the_gpus_memory_stay_there_in_part_and_give_the_same_batches(
    tier, monkeypatch, tiny_config
):
    in_ram, on_disk = (tier(features__preload=preload).train for preload in ("ram", "disk"))
    kept_mb = 7.5 * in_ram.z_NTKD[0].nbytes / 1e6
    partly = keep_part(tiny_config(), on_disk, kept_mb, "cpu")
    asked = []
    read = on_disk.batch
    monkeypatch.setattr(on_disk, "batch", lambda i, f=None: asked.extend(i.tolist()) or read(i, f))
    for pairs in (None, 6):
        config = tiny_config(training__pairs_per_step=pairs)
        feeds = [Feed(data, config, "cpu") for data in (in_ram, partly)]
        for epoch in (0, 1):
            order = epoch_order(in_ram, config, epoch)
            for feed in feeds:
                feed.begin_epoch(order, 0)
            asked.clear()
            for num in [6] * (len(order) // 6) + [len(order) % 6]:
                expected, found = (feed.draw(num) for feed in feeds)
                assert torch.equal(expected[0], found[0])
                assert torch.equal(expected[1], found[1])
            if pairs is None and epoch == 0:
                assert sorted(asked) == list(range(20)), "each was read once"
                kept = {*order[:6].tolist(), min(order[6:12].tolist())}
            else:
                assert set(asked) == set(range(20)) - kept, "what stays is not read again"


@pytest.fixture
def built(tiny_config, stage_all):
    """A config that copies latents into RAM, its sources and their entry."""
    config = tiny_config(features__preload="ram")
    sources = stage_all(config)
    return config, sources, ensure(config, sources)


def load_one(config, entry, sources):
    return loader.load(config, {"burgers1d": entry}, {"burgers1d": sources}, device="cpu")


@pytest.mark.parametrize(
    ("rebuilt_by_others", "name", "last"),
    [(False, "val", True), (True, "val", False), (True, "train", True)],
)
def test_damage_that_stat_does_not_show_is_found_and_rebuilt_once(
    built, flip_bit, caplog, rebuilt_by_others, name, last
):
    config, sources, entry = built  # what Prefect remembers
    current = ensure(config, sources, overwrite=rebuilt_by_others)
    directory = store.entry_dir(config.training.latent_cache_dir, entry.config_hash)
    path = directory / current.generation / f"{name}_000.safetensors"
    flip_bit(path, path.stat().st_size - 3 if last else latent_file.DATA_ALIGNMENT + 3)
    latents = load_one(config, entry, sources)
    assert "building it anew" in caplog.text
    assert (len(latents.train), len(latents.val)) == (20, 5)
    assert list(directory.glob("damaged-*"))


@pytest.mark.parametrize("preload", ["auto", "disk"])
@pytest.mark.parametrize(
    ("cut", "message"), [(False, "chunk 4 has checksum"), (True, "ends .* bytes early")]
)
def test_a_run_that_reads_from_files_finds_damage_at_first_touch_and_the_next_one_builds_anew(
    tiny_config, stage_all, flip_bit, preload, cut, message
):
    config = tiny_config(features__preload=preload)
    sources = stage_all(config)
    entry = ensure(config, sources)
    directory = config.training.latent_cache_dir / entry.config_hash / entry.generation
    path = directory / "train_000.safetensors"
    if not cut:
        flip_bit(path, path.stat().st_size - 3)
    latents = load_one(config, entry, sources)
    assert latents.train.batch(torch.tensor([0, 3, 4, 15])).shape[0] == 4  # of whole chunks
    if cut:
        os.truncate(path, path.stat().st_size // 2)
    for _ in range(2):
        with pytest.raises(CacheDamaged, match=f"{message}.*start again, and the entry is built"):
            latents.train.batch(torch.tensor([15 if cut else 16]))
    latents.close()
    assert (directory.parent / f"damaged-{entry.generation}" / path.name).exists()
    assert not ensure(config, sources).reused


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("stride", [1, 4])
def test_a_batch_from_a_map_is_that_of_a_copy(tier, dtype, stride):
    given = {"training__latent_cache_dtype": dtype, "training__time_stride": stride}
    mapped, copied = (tier(features__preload=p, **given) for p in ("auto", "ram"))
    assert isinstance(mapped.train, MappedCacheDataset)
    frames = torch.tensor([[1, 2], [0, 5], [3, 4]])
    for of_map, of_copy in ((mapped.train, copied.train), (mapped.val, copied.val)):
        index = INDEX % len(of_map)
        of_map.will_need(index, frames)
        assert torch.equal(of_map.batch(index), of_copy.batch(index))
        assert torch.equal(of_map.batch(index, frames), of_copy.batch(index, frames))


def test_strided_latents_are_copied_where_the_page_cache_has_no_room_for_all_frames(
    tier, monkeypatch
):
    # 262 KB of them, of which every fourth frame is kept.
    monkeypatch.setattr(tiers, "available_ram_mb", lambda: 0.2)
    assert isinstance(tier().train, PreloadedCacheDataset)


@pytest.fixture
def crossed(monkeypatch):
    """A stand-in for a GPU that copies as late as it may; the bytes of each copy to it."""
    pending, events, num_bytes = [], [], []

    class Memory(torch.Tensor):
        def copy_(self, rows, **_):
            pending.append((self.as_subclass(torch.Tensor), rows))

    class CopyDone:
        def __init__(self):
            self.copies = []
            events.append(self)

        def record(self):
            self.copies, pending[:] = pending[:], []

        def synchronize(self):
            for target, rows in self.copies:
                num_bytes.append(rows.nbytes)
                target.copy_(rows)
            self.copies = []

    def in_gpu(shape, dtype):
        return torch.zeros(shape, dtype=dtype).as_subclass(Memory)

    monkeypatch.setattr(loader, "in_gpu", in_gpu)
    for name in ("Stream", "default_stream"):
        monkeypatch.setattr(torch.cuda, name, Mock())
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "Event", CopyDone)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: [e.synchronize() for e in events])
    return num_bytes


@pytest.mark.parametrize("stride", [1, 4])
def test_to_a_gpu_cross_only_frames_that_are_kept_from_buffers_that_are_not_filled_too_early(
    tiny_config, stage_all, crossed, stride
):
    config = tiny_config(
        training__time_stride=stride, training__pin_memory=False, training__num_workers=1
    )
    cache_dir = config.training.latent_cache_dir
    manifest = store.open_current(cache_dir, ensure(config, stage_all(config)).config_hash)
    folder = store.generation_dir(cache_dir, manifest)
    files = [(folder / file.name, file) for file in manifest.files]
    on_gpu, in_ram = (loader.read_files(files, config, gpu, Event()) for gpu in (True, False))
    assert torch.equal(on_gpu.as_subclass(torch.Tensor), in_ram)
    assert sum(crossed) == in_ram.nbytes
    assert len(crossed) == sum(file.num_chunks for file in manifest.files)


def test_damage_that_comes_back_is_an_error(built, monkeypatch):
    monkeypatch.setattr(latent_file, "check_chunk", Mock(side_effect=CacheDamaged("made up")))
    config, sources, entry = built
    with pytest.raises(CacheDamaged, match="made up"):
        load_one(config, entry, sources)


def test_a_horizon_longer_than_a_trajectory_is_refused(tier):
    with pytest.raises(DataError, match="have 41 frames; .* need 49"):
        tier(training__rollout_horizon=12)


def test_legacy_mode_does_not_read_its_samples_before_they_are_wanted(
    tiny_config, stage_all, monkeypatch
):
    config = tiny_config(features=Features.legacy().model_dump())
    sources = stage_all(config)
    entry = build_cache(config, sources)
    monkeypatch.setattr(torch, "load", read := Mock(wraps=torch.load))
    latents = load_latents(config, {"burgers1d": sources}, {"burgers1d": entry})
    assert read.call_count == 0
    latents.train.batch(INDEX)
    assert read.call_count == 3


def test_legacy_mode_takes_no_longer_than_what_it_does(tiny_config, stage_all, tmp_path):
    config = tiny_config(features=Features.legacy().model_dump())
    sources, splits = stage_all(config), ("train", "val")

    def plainly():
        fields = {split: sources[split][0].path for split in splits}
        with TrajectoryFile(fields["train"]) as train, TrajectoryFile(fields["val"]) as val:
            encoder = fit_encoder(config, [train])
            for reader in (train, val):
                for row in range(0, reader.num_trajectories, legacy.BATCH):
                    end = min(row + legacy.BATCH, reader.num_trajectories)
                    frames = torch.from_numpy(reader.read(row, end))
                    for latent in encoder.encode(frames).half():
                        torch.save({"latent": latent.clone()}, tmp_path / "sample.pt")

    def seconds(work):
        began = time.monotonic()
        work()
        return time.monotonic() - began

    works = (lambda: legacy.precompute(config, sources), plainly)
    times = [[seconds(work) for work in works] for _ in range(7)]  # alternately
    ours, plain = map(min, zip(*times, strict=True))
    assert ours < 1.5 * plain + 0.01
