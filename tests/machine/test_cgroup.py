"""Cores by CPU quota; what memory a group leaves is in `machine/test_memory`."""

import os

import pytest
import torch

from ups.machine import devices
from ups.machine.cgroup import num_cores

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


def test_torch_takes_no_more_threads_than_there_are_cores(tiny_config, monkeypatch):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        monkeypatch.setattr(devices, "num_cores", lambda: 2)
        devices.training_device(tiny_config())
        assert torch.get_num_threads() == 2
        monkeypatch.setattr(devices, "num_cores", lambda: 8)
        devices.training_device(tiny_config())
        assert torch.get_num_threads() == 2  # OMP_NUM_THREADS asked for fewer than there are
    finally:
        torch.set_num_threads(before)
