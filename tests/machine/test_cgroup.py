"""Cores by CPU quota; what memory a group leaves is in `machine/test_memory`."""

import os

import pytest
import torch

from ups.machine import devices
from ups.machine.cgroup import num_cores
from ups.pipeline.phases import build_cache, load_latents
from ups.training.step import TrainStep

MACHINE = len(os.sched_getaffinity(0))


@pytest.fixture
def cores(tmp_path):
    """`cores(membership, {file: content})`, below a root of its own."""

    def count(membership, files):
        (tmp_path / "cgroup").write_text(f"{membership}\n")
        for name, content in files.items():
            path = tmp_path / "root" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{content}\n")
        return num_cores(tmp_path / "root", tmp_path / "cgroup")

    return count


def test_a_quota_counts_as_cores_rounded_up(cores):
    assert cores("0::/a/b", {"a/b/cpu.max": "max 100000"}) == MACHINE
    assert cores("0::/a/b", {"cpu.max": "6400000 100000"}) == MACHINE
    assert cores("0::/a/b", {"a/cpu.max": "150000 100000"}) == min(2, MACHINE)
    assert cores("0::/a/b", {"a/b/cpu.max": "5000 100000"}) == 1


def test_the_older_layout_is_read_too(cores):
    quota, period = "cpu/a/cpu.cfs_quota_us", "cpu/a/cpu.cfs_period_us"
    assert cores("2:cpu,cpuacct:/a", {quota: "-1", period: "100000"}) == MACHINE
    assert cores("2:cpu,cpuacct:/a", {quota: "100000", period: "100000"}) == 1


@pytest.fixture
def threads(monkeypatch):
    """`threads(cores)`: torch's threads are 3 to begin with, and there are so many cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield lambda cores: monkeypatch.setattr(devices, "num_cores", lambda: cores)
    torch.set_num_threads(before)


def test_torch_takes_no_more_threads_than_there_are_cores(threads):
    threads(2)
    devices.limit_torch_threads()
    assert torch.get_num_threads() == 2
    threads(8)
    devices.limit_torch_threads()
    assert torch.get_num_threads() == 2  # OMP_NUM_THREADS asked for fewer than there are


def test_to_ask_for_the_device_changes_nothing_and_to_encode_or_train_limits_threads(
    threads, tiny_config, stage_all
):
    config = tiny_config(features__gpu_encode=False)
    threads(2)
    devices.training_device(config)
    assert torch.get_num_threads() == 3
    entry = build_cache(config, stage_all(config))
    assert torch.get_num_threads() == 2
    threads(1)
    load_latents(config, {}, {config.problem.name: entry}).close()
    assert torch.get_num_threads() == 1
    torch.set_num_threads(3)
    TrainStep(config)
    assert torch.get_num_threads() == 1


def test_a_small_step_is_done_by_one_thread_and_a_large_one_by_all(threads):
    threads(2)
    devices.limit_torch_threads()
    for size, expected in ((5e7, 1), (2e9, 2)):
        with devices.threads_that_pay(size):
            assert torch.get_num_threads() == expected
        assert torch.get_num_threads() == 2
