"""What `ups doctor` says of a machine: its packages, and its GPU."""

from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

from deployments.doctor import machine
from ups.machine import gpu


def named(findings):
    return {one.name: one for one in findings}


def test_versions_are_compared_with_what_is_needed_and_locked(monkeypatch):
    def found():
        return named(machine.examine_versions())["packages"]

    monkeypatch.setattr(machine, "_requirements", lambda: [Requirement("numpy>=1")])
    monkeypatch.setattr(
        machine, "_locked", lambda: [Requirement("absent==1"), Requirement("numpy")]
    )
    assert found().status == "ok"
    monkeypatch.setattr(machine, "_locked", lambda: [Requirement("numpy==0.1")])
    assert (found().status, "numpy is " in found().what) == ("warn", True)
    for wanted in ("numpy<1", "absent"):
        monkeypatch.setattr(machine, "_requirements", lambda wanted=wanted: [Requirement(wanted)])
        assert (found().status, found().remedy) == ("fault", "`make install`")
    monkeypatch.setattr(machine, "_requirements", lambda: None)
    assert (found().status, "is not installed" in found().what) == ("fault", True)


@pytest.mark.parametrize(("built_for", "cuda"), [(None, 13000), ((13, 0), 12080)])
def test_a_torch_that_cannot_use_the_gpu_is_a_fault(built_for, cuda, monkeypatch):
    nvml = SimpleNamespace(
        NVMLError=OSError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlSystemGetCudaDriverVersion=lambda: cuda,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda i: i,
        nvmlDeviceGetName=lambda _: "RTX 4090",
        nvmlDeviceGetMemoryInfo=lambda _: SimpleNamespace(total=24e9),
    )
    monkeypatch.setattr(gpu, "import_nvml", lambda: nvml)
    monkeypatch.setattr(machine, "_cuda_of_torch", lambda: built_for)
    found = named(machine.examine_gpu())
    assert "RTX 4090 (24 GB)" in found["driver"].what
    assert found["torch"].status == "fault"


def test_a_machine_without_a_gpu_is_no_fault(monkeypatch):
    monkeypatch.setattr(gpu, "import_nvml", lambda: None)
    monkeypatch.setattr(machine, "has_gpu_node", lambda: False)
    assert [one.status for one in machine.examine_gpu()] == ["skip"]
    monkeypatch.setattr(machine, "has_gpu_node", lambda: True)
    assert [one.status for one in machine.examine_gpu()] == ["fault"]
