"""Building entries: whole, resumed, shared, damaged, refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ups.data.pdebench import TrajectoryFile
from ups.errors import DataError, DiskFull, Interrupted
from ups.latents import build, store
from ups.latents.build import ensure
from ups.latents.chunks import ChunkEncoder
from ups.latents.encode import PatchEncoder


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


def test_a_second_build_reuses_the_entry(built):
    config, sources, entry = built
    again = ensure(config, sources)
    assert again.reused
    assert again.generation == entry.generation


def test_another_dim_builds_a_new_entry_keeps_the_old_and_says_what_changed(built, tiny_config):
    config, sources, entry = built
    other = ensure(tiny_config(latent__dim=8), sources)
    assert not other.reused
    assert other.changed == ("latent.dim 8, the cached entry has 16",)
    assert ensure(config, sources).reused


def test_overwrite_builds_a_new_generation_and_removes_the_old(built):
    config, sources, entry = built
    _, old = open_entry(config, entry)
    again = ensure(config, sources, overwrite=True)
    assert again.generation != entry.generation
    assert not old.exists()


def test_a_generation_that_is_read_survives_an_overwrite(built):
    config, sources, entry = built
    _, old = open_entry(config, entry)
    hold = store.InUse(old)
    ensure(config, sources, overwrite=True)
    assert old.exists()
    hold.close()
    ensure(config, sources, overwrite=True)
    assert not old.exists()


@pytest.mark.parametrize("parallel", [True, False])
def test_a_stopped_build_goes_on_where_it_was(tiny_config, stage_all, parallel):
    config = tiny_config(features__parallel_encode=parallel)
    sources = stage_all(config)
    stop = threading.Event()
    counts = []

    def stop_after_two_chunks(done, total):
        counts.append(done)
        if done >= 8:
            stop.set()

    with pytest.raises(Interrupted):
        ensure(config, sources, stop=stop, progress=stop_after_two_chunks)
    resumed = []
    entry = ensure(config, sources, progress=lambda done, total: resumed.append(done))
    assert resumed[0] >= 8
    assert entry.num_trajectories == 25
    manifest, directory = open_entry(config, entry)
    for file in manifest.files:
        store.verify_file(directory / file.name, file)


def test_a_damaged_chunk_of_a_stopped_build_is_encoded_again(tiny_config, stage_all):
    config = tiny_config(features__parallel_encode=False)
    sources = stage_all(config)
    stop = threading.Event()
    with pytest.raises(Interrupted):
        ensure(config, sources, stop=stop, progress=lambda done, _: done >= 8 and stop.set())
    partial = next(config.training.latent_cache_dir.glob("*/building-*/train_000.safetensors"))
    with partial.open("r+b") as file:
        file.seek(store.DATA_ALIGNMENT + 10)
        file.write(b"\xff\xff")
    resumed = []
    ensure(config, sources, progress=lambda done, _: resumed.append(done))
    assert resumed[0] == 4


def test_a_build_killed_with_sigkill_is_resumed_and_its_lock_is_free(tiny_config, stage_all):
    config = tiny_config(features__parallel_encode=False)
    script = f"""
import json, time, sys
from ups.config import parse_config
from ups.data.sources import stage
from ups.latents.build import ensure
from ups.latents.chunks import ChunkEncoder
config = parse_config(json.loads({config.model_dump_json()!r}))
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
    entries = []
    threads = [
        threading.Thread(target=lambda: entries.append(ensure(config, sources))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(entry.reused for entry in entries) == [False, True]
    assert entries[0].generation == entries[1].generation


@pytest.mark.parametrize("damage", ["gone", "truncated", "flipped"])
def test_a_damaged_entry_is_not_valid_and_is_built_again(built, damage):
    config, sources, entry = built
    manifest, directory = open_entry(config, entry)
    path = directory / manifest.files[0].name
    if damage == "gone":
        path.unlink()
    elif damage == "truncated":
        os.truncate(path, path.stat().st_size - 1)
    else:
        with path.open("r+b") as file:
            file.seek(5000)
            file.write(b"\x00\x01\x02")
    assert not store.check_cache_valid(config.training.latent_cache_dir, entry.config_hash)
    assert not ensure(config, sources).reused
    assert store.check_cache_valid(config.training.latent_cache_dir, entry.config_hash)


def test_a_copied_cache_is_still_valid_although_its_times_differ(built, tmp_path):
    config, _, entry = built
    copy = tmp_path / "copy"
    shutil.copytree(config.training.latent_cache_dir, copy, copy_function=shutil.copyfile)
    assert store.check_cache_valid(copy, entry.config_hash)


def test_a_corrupt_manifest_is_not_valid(built):
    config, _, entry = built
    _, directory = open_entry(config, entry)
    (directory / store.MANIFEST_NAME).write_text("{")
    assert not store.check_cache_valid(config.training.latent_cache_dir, entry.config_hash)


def test_completeness_counts_trajectories(built):
    config, _, entry = built
    cache_dir = config.training.latent_cache_dir
    assert store.check_cache_complete(cache_dir, entry.config_hash) == (True, 25)
    assert store.check_cache_complete(cache_dir, entry.config_hash, 25) == (True, 25)
    assert store.check_cache_complete(cache_dir, entry.config_hash, 26) == (False, 25)
    assert store.check_cache_complete(cache_dir, "0" * 12) == (False, 0)


def test_the_size_estimate_is_the_size_of_the_entry(built):
    config, _, entry = built
    assert store.estimate_cache_size_mb(config, 25, 41) == pytest.approx(entry.num_bytes / 1e6)


def test_a_full_disk_is_refused_before_anything_is_written(tiny_config, stage_all, monkeypatch):
    config = tiny_config()
    sources = stage_all(config)
    usage = shutil.disk_usage(config.data_root)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    with pytest.raises(DiskFull, match="needs .* MB in .*, found 1 MB free"):
        ensure(config, sources)
    assert not list(config.training.latent_cache_dir.glob("*/*/*.safetensors"))


@pytest.mark.parametrize("frame", [3, 8])  # one that the fit reads, and one that it does not
def test_a_trajectory_with_nan_is_refused_and_leaves_nothing(
    tiny_config, stage_all, tmp_path, frame
):
    root = tmp_path / "broken"
    shutil.copytree(tiny_config().data_root, root)
    with h5py.File(root / "burgers1d_train.h5", "r+") as file:
        file["tensor"][17, frame, 5] = np.nan
    config = tiny_config(data__root=str(root))
    with pytest.raises(DataError, match="trajectory 17"):
        ensure(config, stage_all(config))
    assert not list(config.training.latent_cache_dir.glob("*/CURRENT"))
    assert not list(config.training.latent_cache_dir.glob("*/building-*"))


def test_a_nan_is_named_by_its_row_in_the_file(tiny_data, tmp_path, tiny_config):
    path = tmp_path / "broken.h5"
    shutil.copy(tiny_data / "burgers1d_train.h5", path)
    with h5py.File(path, "r+") as file:
        file["tensor"][17, 3, 5] = np.nan
    config = tiny_config()
    encoder = PatchEncoder(torch.eye(32), 0.0, 1.0)
    with (
        TrajectoryFile(path, (10, 20)) as reader,
        ChunkEncoder(config, encoder, "cpu") as chunks,
        pytest.raises(DataError, match="trajectory 17"),
    ):
        chunks.encode(reader, 5, 10)


def test_out_of_memory_halves_the_batch_to_one_then_goes_to_the_cpu(
    tiny_config, tiny_data, monkeypatch, caplog
):
    tried = []

    def no_memory(self, source, first, latents, batch):
        tried.append(batch)
        raise torch.cuda.OutOfMemoryError("made up")

    monkeypatch.setattr(ChunkEncoder, "_encode_on_gpu", no_memory)
    encoder = PatchEncoder(torch.eye(32), 0.0, 1.0)
    with TrajectoryFile(tiny_data / "burgers1d_train.h5") as reader:
        with ChunkEncoder(tiny_config(), encoder, "cpu") as chunks:
            expected = bytes(chunks.encode(reader, 0, 4))
        with ChunkEncoder(tiny_config(), encoder, "cpu") as chunks, caplog.at_level("WARNING"):
            chunks._device = "cuda"
            monkeypatch.setattr(torch, "empty", unpinned(torch.empty))
            assert bytes(chunks.encode(reader, 0, 4)) == expected
    assert tried == [4, 2, 1]
    assert caplog.text.count("out of GPU memory") == 3
    assert "on the CPU instead" in caplog.text


def unpinned(empty):
    return lambda *args, pin_memory=False, **kwargs: empty(*args, **kwargs)


def test_values_beyond_half_precision_are_refused_with_a_remedy(tiny_config, stage_all, tmp_path):
    root = tmp_path / "large"
    shutil.copytree(tiny_config().data_root, root)
    with h5py.File(root / "burgers1d_train.h5", "r+") as file:
        file["tensor"][...] *= 1e6
    config = tiny_config(data__root=str(root), encoder__normalise=False)
    with pytest.raises(DataError, match="set training.latent_cache_dtype to float32"):
        ensure(config, stage_all(config))


def test_the_manifest_says_what_the_entry_is_and_no_progress_record_stays(built):
    config, _, entry = built
    _, directory = open_entry(config, entry)
    record = json.loads((directory / store.MANIFEST_NAME).read_text())
    assert record["config_hash"] == entry.config_hash
    assert record["key_fields"]["latent"] == {"dim": 16, "tokens": 8}
    assert not (directory / build.PROGRESS_NAME).exists()
    assert time.time() - record["generated_at"] < 300


def test_a_copied_cache_is_read_once_not_at_every_look(built, tmp_path, monkeypatch):
    config, _, entry = built
    copy = tmp_path / "copy"
    shutil.copytree(config.training.latent_cache_dir, copy, copy_function=shutil.copyfile)
    verified = []
    real = store.verify_file
    monkeypatch.setattr(store, "verify_file", lambda path, file: verified.append(real(path, file)))
    for _ in range(3):
        assert store.check_cache_valid(copy, entry.config_hash)
    assert len(verified) == 2


def test_a_late_quarantine_leaves_a_good_entry_alone(built):
    config, _, entry = built
    assert store.quarantine(config.training.latent_cache_dir, entry.config_hash) is None
    assert store.check_cache_valid(config.training.latent_cache_dir, entry.config_hash)
    assert store.quarantine(config.training.latent_cache_dir, "0" * 12) is None
