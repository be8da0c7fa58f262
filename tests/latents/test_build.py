"""Building entries: whole, resumed, shared, damaged, refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ups.data.pdebench import TrajectoryFile
from ups.errors import CacheError, DataError, DiskFull, Interrupted
from ups.latents import journal, latent_file, store
from ups.latents.build import ensure
from ups.latents.chunks import ChunkEncoder
from ups.latents.encode import PatchEncoder
from ups.latents.key import compute_cache_hash


@pytest.fixture
def built(tiny_config, stage_all):
    config = tiny_config()
    sources = stage_all(config)
    return config, sources, ensure(config, sources)


def open_entry(config, entry):
    manifest = store.open_current(config.training.latent_cache_dir, entry.config_hash)
    return manifest, store.generation_dir(config.training.latent_cache_dir, manifest)


def test_the_files_hold_the_encoded_trajectories_and_any_safetensors_reader_opens_them(built):
    config, sources, entry = built
    manifest, directory = open_entry(config, entry)
    encoder = PatchEncoder.from_manifest(manifest.encoder)
    for file in manifest.files:
        latents = load_file(directory / file.name)["latents"]
        with TrajectoryFile(sources[file.split][0].path) as reader:
            frames = torch.from_numpy(reader.read(0, reader.num_trajectories))
        assert torch.equal(latents, encoder.encode(frames).half())
    assert {f.split for f in manifest.files} == {"train", "val"}
    assert entry.num_trajectories == 25


def test_a_second_build_reuses_the_entry_and_another_dim_builds_a_new_one_and_says_why(
    built, tiny_config
):
    config, sources, entry = built
    other = ensure(tiny_config(latent__dim=8), sources)
    assert not other.reused
    assert other.changed == ("latent.dim 8, the cached entry has 16",)
    again = ensure(config, sources)
    assert (again.reused, again.generation) == (True, entry.generation)


def test_overwrite_builds_a_new_generation_and_removes_the_old_unless_it_is_read(built):
    config, sources, entry = built
    _, old = open_entry(config, entry)
    hold = store.InUse(old)
    assert ensure(config, sources, overwrite=True).generation != entry.generation
    assert old.exists()
    hold.close()
    ensure(config, sources, overwrite=True)
    assert not old.exists()


def stop_at(config, sources, num):
    """A build that was stopped when so many trajectories were encoded; its folder."""
    stop = threading.Event()
    with pytest.raises(Interrupted):
        ensure(config, sources, stop=stop, progress=lambda done, _: done >= num and stop.set())
    (partial,) = config.training.latent_cache_dir.glob("*/building-*")
    return partial


@pytest.mark.parametrize(("parallel", "damaged"), [(True, False), (False, False), (False, True)])
def test_a_stopped_build_goes_on_where_it_was_and_encodes_a_damaged_chunk_again(
    tiny_config, stage_all, flip_bit, parallel, damaged
):
    config = tiny_config(features__parallel_encode=parallel)
    sources = stage_all(config)
    partial = stop_at(config, sources, 8)
    if damaged:
        flip_bit(partial / "train_000.safetensors", latent_file.DATA_ALIGNMENT + 10)
    resumed = []
    entry = ensure(config, sources, progress=lambda done, _: resumed.append(done))
    assert resumed[0] == 4 if damaged else resumed[0] >= 8
    assert entry.num_trajectories == 25
    manifest, directory = open_entry(config, entry)
    for file in manifest.files:
        latent_file.verify_file(directory / file.name, file)


def test_a_stopped_build_of_another_entry_is_not_resumed_nor_one_that_is_to_be_overwritten(
    tiny_config, stage_all
):
    config, done = tiny_config(), []
    sources = stage_all(config)
    partial = stop_at(config, sources, 8)
    other = tiny_config(encoder__fit_seed=1)  # of the same shape
    entry = store.entry_dir(config.training.latent_cache_dir, compute_cache_hash(other, sources))
    shutil.copytree(partial, entry / partial.name)
    ensure(other, sources, progress=lambda num, _: done.append(num))
    assert done[0] == 0
    done.clear()
    ensure(config, sources, overwrite=True, progress=lambda num, _: done.append(num))
    assert done[0] == 0
    assert not partial.exists()


def test_what_was_encoded_of_bytes_that_were_fetched_anew_is_encoded_again(tiny_config, stage_all):
    def of(fetch):
        return {
            split: [source.model_copy(update={"fetch": fetch}) for source in of_split]
            for split, of_split in stage_all(config).items()
        }

    config, done = tiny_config(), []
    stop_at(config, of("one"), 8)
    ensure(config, of("another"), progress=lambda num, _: done.append(num))
    assert done[0] == 0


def test_an_entry_in_the_place_of_another_is_not_opened(built):
    config, _, entry = built
    cache_dir, other = config.training.latent_cache_dir, "0" * 12
    shutil.copytree(cache_dir / entry.config_hash, cache_dir / other)
    with pytest.raises(CacheError, match=f"manifest of {entry.config_hash}.*expected {other}"):
        store.open_current(cache_dir, other)


def test_a_build_killed_with_sigkill_is_resumed_and_its_lock_is_free(tiny_config, stage_all):
    config = tiny_config(features__parallel_encode=False)
    script = f"""
import json, time
from ups.config import parse_config
from ups.data.sources import stage
from ups.latents.build import ensure
config = parse_config(json.loads({config.model_dump_json()!r})).only_problem()
sources = {{split: stage(config, split, None) for split in ("train", "val")}}
def slow(done, total):
    print(done, flush=True)
    time.sleep(0.5 if done else 0)
ensure(config, sources, progress=slow)
"""
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    with child.stdout:
        while int(child.stdout.readline()) < 8:
            pass
        child.send_signal(signal.SIGKILL)
        child.wait()
    resumed = []
    entry = ensure(config, stage_all(config), progress=lambda done, _: resumed.append(done))
    assert resumed[0] >= 4
    assert entry.num_trajectories == 25


def test_two_builders_at_once_build_once(tiny_config, stage_all):
    config = tiny_config()
    sources = stage_all(config)
    with ThreadPoolExecutor(2) as pool:
        entries = list(pool.map(lambda _: ensure(config, sources), range(2)))
    assert sorted(entry.reused for entry in entries) == [False, True]
    assert entries[0].generation == entries[1].generation


@pytest.mark.parametrize("damage", ["gone", "truncated", "flipped", "no manifest"])
def test_a_damaged_entry_is_not_valid_and_is_built_again(built, damage):
    config, sources, entry = built
    manifest, directory = open_entry(config, entry)
    path = directory / manifest.files[0].name
    if damage == "gone":
        path.unlink()
    elif damage == "truncated":
        os.truncate(path, path.stat().st_size - 1)
    elif damage == "no manifest":
        (directory / store.MANIFEST_NAME).write_text("{")
    else:
        with path.open("r+b") as file:
            file.seek(5000)
            file.write(b"\x00\x01\x02")
    assert not store.check_cache_valid(config.training.latent_cache_dir, entry.config_hash)
    assert not ensure(config, sources).reused
    assert store.check_cache_valid(config.training.latent_cache_dir, entry.config_hash)


def test_a_full_disk_is_refused_before_anything_is_written(tiny_config, stage_all, monkeypatch):
    config = tiny_config()
    sources = stage_all(config)
    usage = shutil.disk_usage(config.data_root)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    with pytest.raises(DiskFull, match="needs .* MB in .*, found 1 MB free"):
        ensure(config, sources)
    assert not list(config.training.latent_cache_dir.glob("*/*/*.safetensors"))


@pytest.fixture
def scale_train(tiny_config, stage_all, tmp_path):
    """`scale_train(factor, **overrides)`: a config on train times so much, and its sources."""

    def make(factor, **overrides):
        shutil.copytree(tiny_config().data_root, tmp_path / "scaled")
        with h5py.File(tmp_path / "scaled" / "burgers1d_train.h5", "r+") as file:
            file["tensor"][...] *= factor
        config = tiny_config(data__root=str(tmp_path / "scaled"), **overrides)
        return config, stage_all(config)

    return make


@pytest.mark.parametrize("frame", [3, 8])  # one that the fit does not read, and one that it does
@pytest.mark.parametrize("bad", [np.nan, 1e17])
def test_a_trajectory_with_no_field_value_is_refused_by_its_row_and_leaves_nothing(
    scale_train, frame, bad
):
    factor = np.ones((20, 41, 256))
    factor[17, frame, 5] = bad
    config, sources = scale_train(factor, training__latent_cache_dtype="float32")
    with pytest.raises(DataError, match="trajectory 17"):
        ensure(config, sources)
    assert not list(config.training.latent_cache_dir.glob("*/CURRENT"))
    assert not list(config.training.latent_cache_dir.glob("*/building-*"))


def test_out_of_memory_halves_the_batch_to_one_then_goes_to_the_cpu(
    tiny_config, tiny_data, monkeypatch, caplog
):
    no_memory = Mock(side_effect=torch.cuda.OutOfMemoryError("made up"))

    def unpinned(*args, pin_memory=False, real=torch.empty, **kwargs):
        return real(*args, **kwargs)

    monkeypatch.setattr(ChunkEncoder, "_encode_on_gpu", no_memory)
    encoder = PatchEncoder(torch.eye(32), 0.0, 1.0)
    with TrajectoryFile(tiny_data / "burgers1d_train.h5") as reader:
        with ChunkEncoder(tiny_config(), encoder, "cpu") as chunks:
            expected = bytes(chunks.encode(reader, 0, 4))
        with ChunkEncoder(tiny_config(), encoder, "cpu") as chunks, caplog.at_level("WARNING"):
            chunks._device = "cuda"
            monkeypatch.setattr(torch, "empty", unpinned)
            assert bytes(chunks.encode(reader, 0, 4)) == expected
    assert [call.args[-1] for call in no_memory.call_args_list] == [4, 2, 1]  # batches
    assert caplog.text.count("out of GPU memory") == 3
    assert "on the CPU instead" in caplog.text


def test_values_beyond_half_precision_are_refused_with_a_remedy(scale_train):
    config, sources = scale_train(1e6, encoder__normalise=False)
    with pytest.raises(DataError, match="set training.latent_cache_dtype to float32"):
        ensure(config, sources)


def test_the_manifest_says_what_the_entry_is_its_size_is_as_estimated_no_progress_record_stays(
    built,
):
    config, _, entry = built
    _, directory = open_entry(config, entry)
    record = json.loads((directory / store.MANIFEST_NAME).read_text())
    assert record["config_hash"] == entry.config_hash
    assert record["key_fields"]["latent"] == {"dim": 16, "tokens": 8}
    assert not (directory / journal.NAME).exists()
    assert time.time() - record["generated_at"] < 300
    assert store.estimate_cache_size_mb(config, 25, 41) == pytest.approx(entry.num_bytes / 1e6)


def test_a_copied_cache_is_valid_read_once_not_at_every_look_and_left_by_a_late_quarantine(
    built, tmp_path, monkeypatch
):
    config, _, entry = built
    copy = tmp_path / "copy"
    shutil.copytree(config.training.latent_cache_dir, copy, copy_function=shutil.copyfile)
    monkeypatch.setattr(latent_file, "verify_file", verified := Mock(wraps=latent_file.verify_file))
    for _ in range(3):
        assert store.check_cache_valid(copy, entry.config_hash)
    assert verified.call_count == 2
    for config_hash in (entry.config_hash, "0" * 12):
        assert store.quarantine(copy, config_hash) is None
    assert store.check_cache_valid(copy, entry.config_hash)
