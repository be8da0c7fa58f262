"""Before a run, a scenario's folder holds what it is to find, and nothing else."""

import ctypes
import errno
import mmap
import os
import threading
from types import SimpleNamespace
from uuid import UUID

import pytest

from tasks import benchmark
from ups.config import SPLITS
from ups.data.objectstore import ObjectStore
from ups.data.sources import open_store, stage
from ups.errors import BenchmarkError, ConfigError
from ups.latents import store
from ups.latents.build import ensure
from ups.machine import page_cache
from ups.runs.breakdown import Breakdown
from ups.runs.folder import CHECKPOINTS
from ups.startup.measure import bounds
from ups.startup.measure import prepare as preparing
from ups.startup.measure.bounds import Rates, measure
from ups.startup.measure.prepare import RETAINED_RUNS, prepare, touch_memory_of_run
from ups.startup.measure.scenarios import BY_NAME


def upload(folder, names, prefix):
    """The splits of a data set, as objects of the store; returns the sources that name them."""
    objects = ObjectStore()
    for split in SPLITS:
        objects.upload(folder / f"{names}_{split}.h5", "pdebench", f"{prefix}/{split}.h5")
    objects.close()
    return {split: [{"key": f"{prefix}/{split}.h5"}] for split in SPLITS}


@pytest.fixture
def config(store_env, tiny_data, tiny_config, tmp_path):
    """The tiny data as objects of a store, to be staged below tmp_path."""
    sources = upload(tiny_data, "burgers1d", "prepare")
    return tiny_config(data__root=str(tmp_path / "data"), data__sources=sources)


def build(config):
    objects = open_store(config)
    staged = {split: stage(config, split, objects) for split in SPLITS}
    objects.close()
    return ensure(config, staged).config_hash


def staged_files(config):
    return sorted(path.name for path in config.data_root.rglob("*.h5"))


def test_nothing_is_left_before_a_cold_run(config):
    build(config)
    assert prepare(BY_NAME["cold"], config)
    assert not config.data_root.exists()
    assert not config.training.latent_cache_dir.exists()


def test_memory_is_touched_by_what_the_objects_weigh_and_half_of_what_is_available_at_most(
    config, tiny_data, monkeypatch
):
    weights = [(tiny_data / f"burgers1d_{split}.h5").stat().st_size for split in SPLITS]
    assert touch_memory_of_run(config) == 2 * sum(weights)
    monkeypatch.setattr(preparing, "available_ram_mb", lambda: 0.1)
    assert touch_memory_of_run(config) == 50_000


@pytest.mark.parametrize("name", ["cold", "changed-config"])
def test_what_cannot_be_removed_ends_the_benchmark(config, monkeypatch, name):
    """No run is called cold that finds what an earlier one left."""
    build(config)

    def unlink(path, **others):
        raise PermissionError(errno.EPERM, "not permitted", path)

    monkeypatch.setattr(os, "unlink", unlink)
    with pytest.raises(BenchmarkError, match=r"cannot be removed: .*not permitted.*by hand"):
        prepare(BY_NAME[name], config)


@pytest.mark.parametrize("name", ["cold", "changed-config", "warm"])
def test_the_users_data_are_never_touched(config, tmp_path, monkeypatch, name):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x.h5").write_bytes(b"mine")
    monkeypatch.setenv("PDEBENCH_ROOT", str(tmp_path / "mine"))
    with pytest.raises(ConfigError, match="PDEBENCH_ROOT is .*mine"):
        prepare(BY_NAME[name], config)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["x.h5"]


def test_before_a_changed_config_the_data_are_there_and_its_entry_is_not(config):
    key = build(config)
    other = config.model_copy(update={"latent": config.latent.model_copy(update={"dim": 8})})
    other_key = build(other)
    assert prepare(BY_NAME["changed-config"], other)
    cache_dir = config.training.latent_cache_dir
    assert store.check_cache_valid(cache_dir, key)
    assert not store.check_cache_valid(cache_dir, other_key)
    assert staged_files(config) == ["test.h5", "train.h5", "val.h5"]


def test_a_warm_run_waits_until_a_run_has_built_its_cache(config):
    assert not prepare(BY_NAME["warm"], config)
    assert staged_files(config) == ["test.h5", "train.h5", "val.h5"]
    build(config)
    assert prepare(BY_NAME["warm"], config)


def test_a_warm_run_of_several_problems_waits_for_the_entries_of_all(
    config, mixed_data, tiny_config, tmp_path
):
    of_advection = upload(mixed_data, "advection1d", "prepare/advection")
    problems = [("burgers1d", config.data.model_dump()["sources"]), ("advection1d", of_advection)]
    several = tiny_config(
        data__root=str(tmp_path / "data"),
        data__task=[{"name": name, "sources": sources} for name, sources in problems],
    )
    assert not prepare(BY_NAME["warm"], several)
    build(config)
    assert not prepare(BY_NAME["warm"], several)
    build(several.by_problem()["advection1d"])
    assert prepare(BY_NAME["warm"], several)
    assert prepare(BY_NAME["changed-config"], several)
    assert not prepare(BY_NAME["warm"], several)
    assert measure(several, tmp_path / "bounds", "kept").store > 0


def test_rates_are_measured_from_the_disk_where_the_page_cache_is_dropped_and_leave_no_file(
    config, tmp_path, monkeypatch
):
    rates = measure(config, tmp_path / "bounds", "kept")
    assert min(rates.store, rates.write, rates.read) > 1e6
    in_memory = []
    monkeypatch.setattr(bounds, "_read", lambda path, _: in_memory.append(num_resident(path)))
    measure(config, tmp_path / "bounds", "dropped")
    assert in_memory == [0] * bounds.TRIALS
    measure(config, tmp_path / "bounds", "kept")
    assert min(in_memory[bounds.TRIALS :]) > 0
    assert list((tmp_path / "bounds").iterdir()) == []


def test_what_takes_many_seconds_is_tried_once(monkeypatch):
    monkeypatch.setattr(bounds, "ENOUGH_S", 0.0)
    tried = []
    assert bounds._best(1, lambda: tried.append(1)) > 0
    assert len(tried) == 1


def test_what_a_run_reads_is_dropped_from_memory_latents_too(config, tmp_path, monkeypatch):
    monkeypatch.setattr(page_cache, "DROP_CACHES", tmp_path / "not" / "ours")
    monkeypatch.setattr(benchmark, "prepare", lambda *_: True)
    build(config)
    found = page_cache.files_in([config.data_root, config.training.latent_cache_dir])
    assert {path.suffix for path in found} >= {".h5", ".safetensors"}
    assert sum(num_resident(path) for path in found) > 0
    assert benchmark.prepare_scenario.fn(BY_NAME["warm"], config, "dropped", threading.Event())
    assert {path: num for path in found if (num := num_resident(path))} == {}


def num_resident(path):
    """Pages of a file that the kernel has in memory."""
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            return 0
        with mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE) as view:
            pages = (ctypes.c_ubyte * (-(-size // mmap.PAGESIZE)))()
            at = ctypes.byref(ctypes.c_char.from_buffer(view))
            assert libc.mincore(at, ctypes.c_size_t(size), pages) == 0
            del at
    return sum(page & 1 for page in pages)


def test_only_phases_that_moved_bytes_have_a_bound():
    rates = Rates(store=100e6, write=50e6, read=1e9)
    moved = {"download": 200_000_000, "cache": 0, "load": 500_000_000, "boot": 7}
    assert rates.bounds_s(moved) == {"download": 2.0, "load": 0.5}


def run_folder(runs_dir, number):
    folder = runs_dir / f"20261125-03{number:04d}-cold-{UUID(int=number).hex}"
    (folder / CHECKPOINTS).mkdir(parents=True)
    (folder / CHECKPOINTS / "last.pt").write_bytes(bytes(1000))
    Breakdown(
        run=folder.name, config="cold", config_hash=None, start_mode="warm", triggered_at=1.0,
        ttfs_s=2.0, until_s=2.0, idle_s=2.5, waited_s=0.75, unaccounted_s=0.0, cost_usd=0.0,
        cache_reused=False, phases=(), spans=(), metrics={},
    ).save(folder)  # fmt: skip
    return folder


def test_the_last_folders_of_a_scenarios_runs_are_retained_without_checkpoints(
    tiny_config, tmp_path
):
    config = tiny_config(runs_dir=str(tmp_path / "runs"))
    folders = [run_folder(config.runs_dir, number) for number in range(RETAINED_RUNS + 3)]
    (config.runs_dir / "mine").mkdir()
    run = SimpleNamespace(id=UUID(int=RETAINED_RUNS + 2))
    rates = Rates(store=1.0, write=1.0, read=1.0)
    record = benchmark.read_record(BY_NAME["cold"], 1, run, config, rates, 0.25)
    assert (record.ttfs_s, record.busy_cores) == (2.0, 0.25)
    assert (record.idle_s, record.waited_s) == (2.5, 0.75)
    assert sorted(config.runs_dir.iterdir()) == [*folders[3:], config.runs_dir / "mine"]
    assert {p.name for p in config.runs_dir.rglob("*.*")} == {"breakdown.json"}
