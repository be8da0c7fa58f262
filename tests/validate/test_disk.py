"""Room for downloads and cache: as much as they really take."""

import os
from pathlib import Path

import pytest

from ups.latents.build import ensure
from ups.validate.data import validate_data
from ups.validate.disk import validate_disk
from ups.validate.sources import latent_bytes

PLENTY = 10**12


@pytest.fixture
def check(monkeypatch):
    def run(config, *, free=PLENTY, to_build=("burgers1d",)):
        _, sources = validate_data(config, num_sampled=1)
        monkeypatch.setattr("ups.validate.disk.free_bytes", lambda directory: free)
        return validate_disk(config, sources, to_build=to_build)

    return run


def test_what_is_needed_is_what_is_then_written(check, in_store, stage_from_store, tmp_path):
    config = in_store(training__latent_cache_dir=str(tmp_path / "cache"))
    (before,) = check(config)
    assert (before.name, before.status) == ("download and cache", "ok")
    staged = stage_from_store(config)
    downloaded = sum(source.num_bytes for of_split in staged.values() for source in of_split)
    (after,) = check(config)
    assert after.name == "cache"
    # Before, the trajectories are counted by the size of the object.
    then = downloaded + after.figures["needed_bytes"]
    assert before.figures["needed_bytes"] == pytest.approx(then, rel=0.01)
    entry = ensure(config, staged)
    assert after.figures["needed_bytes"] == entry.num_bytes


def test_too_little_room_is_a_fault_with_the_sum_and_a_partial_download_has_its_room_already(
    check, in_store, tiny_data
):
    config = in_store()
    before = check(config)[0].figures["needed_bytes"]
    (found,) = check(config, free=before + 64 * 2**20 - 1)
    assert found.status == "fault"
    assert "make room, or set data.root and training.latent_cache_dir to a larger" in found.text
    assert check(config, free=before + 64 * 2**20)[0].status == "ok"
    root = config.data_root / "tiny" / "burgers1d"
    root.mkdir(parents=True)
    size = (tiny_data / "burgers1d_train.h5").stat().st_size
    with (root / ".burgers1d_train.h5.part").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)
    after = check(config)[0].figures["needed_bytes"]
    assert before - after == size


def test_an_object_of_three_splits_needs_its_room_once(check, in_store, bucket, tiny_data):
    key = "burgers1d/burgers1d_train.h5"
    rows = {"train": [0, 12], "val": [12, 16], "test": [16, 20]}
    sources = {s: [{"key": key, "bucket": bucket, "rows": r}] for s, r in rows.items()}
    (found,) = check(in_store(data__sources=sources), to_build=())
    size = (tiny_data / "burgers1d_train.h5").stat().st_size
    assert (found.name, found.figures["needed_bytes"]) == ("download", size)


def test_a_folder_that_may_not_be_written_to_is_a_fault_where_it_is_written_to(
    check, tiny_config, monkeypatch
):
    monkeypatch.setattr(os, "access", lambda *_: False)  # to root all folders are writable
    config = tiny_config()
    faults = [c.name for c in check(config) if c.status == "fault"]
    assert faults == [str(config.training.latent_cache_dir), str(config.runs_dir)]
    faults = [c.name for c in check(config, to_build=()) if c.status == "fault"]
    assert faults == [str(config.runs_dir)]


def test_a_full_disk_is_a_warning_where_nothing_is_to_be_written_but_the_run(check, tiny_config):
    (found,) = check(tiny_config(), to_build=())
    assert found.text.startswith("nothing to download or to build; 1 TB free at ")
    (found,) = check(tiny_config(), to_build=(), free=1000)
    assert found.status == "warn"


def test_a_file_in_the_place_of_a_folder_is_a_fault(check, tiny_config, tmp_path):
    (tmp_path / "taken").write_text("")
    checks = check(tiny_config(runs_dir=str(tmp_path / "taken" / "runs")))
    assert checks[0].status == "fault"
    assert checks[0].text == f"{tmp_path / 'taken'} is a file, expected a folder"


def test_the_free_space_of_this_machine_is_that_of_the_disk(tiny_config):
    config = tiny_config()
    _, sources = validate_data(config, num_sampled=1)
    (found,) = validate_disk(config, sources, to_build=["burgers1d"])
    usage = os.statvfs(Path(config.training.latent_cache_dir).parent)
    assert found.figures["free_bytes"] == pytest.approx(usage.f_bavail * usage.f_frsize, rel=0.05)


@pytest.mark.parametrize("kept", [True, False])
def test_what_streams_and_is_not_kept_needs_room_for_test_and_what_is_on_its_way(
    check, in_store, bucket, tiny_data, monkeypatch, kept
):
    monkeypatch.setattr("ups.validate.disk.BACKLOG_BYTES", 100_000)
    monkeypatch.setattr("ups.validate.disk.IN_FLIGHT_BYTES", 50_000)
    key = "burgers1d/burgers1d_train.h5"
    rows = {"train": [0, 12], "val": [12, 18], "test": [18, 19]}
    sources = {s: [{"key": key, "bucket": bucket, "rows": r}] for s, r in rows.items()}
    config = in_store(data__sources=sources, data__keep_sources=kept)
    (found,) = check(config)
    latents = latent_bytes(config, validate_data(config, num_sampled=1)[1])
    size = (tiny_data / "burgers1d_train.h5").stat().st_size
    row = 201 * 256 * 4  # as of PDEBench: before, nobody knows how many frames are saved
    assert found.figures["needed_bytes"] - latents == (size if kept else 150_000 + row)
    (found,) = check(config, to_build=())  # then the file is fetched for test
    assert found.figures["needed_bytes"] == size
