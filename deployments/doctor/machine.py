"""The machine: room on the disks, GPU, versions, and the ports that the stack listens on."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from deployments.doctor.findings import Finding, Findings
from deployments.layout import BIN_DIR, PORT_NAMES, Stack, StackError, is_clone
from ups import PROJECT_DIR, __version__
from ups.files import DISK_MARGIN_BYTES
from ups.machine import gpu
from ups.machine.devices import has_gpu_node
from ups.machine.host import commit
from ups.units import format_size

PACKAGE = "ups-train"
FEW_BYTES = 2_000_000_000  # `smoke` takes 0.4 GB of it, its stack and its run
PARTS_OF_PORTS = {"prefect_port": "prefect-server", "s3_port": "object-store"}


def examine_disk(stack: Stack) -> list[Finding]:
    """Room, and the right to write, where the project keeps what it makes."""
    findings = Findings("disk")
    root = PROJECT_DIR if is_clone() else Path.cwd()
    folders = {"data, cache": root / "data", "runs": root / "runs"}
    if is_clone():
        folders = {"stack": stack.folder, **folders}
    if elsewhere := os.environ.get("PDEBENCH_ROOT"):
        folders["PDEBENCH_ROOT"] = Path(elsewhere).absolute()
    for name, folder in folders.items():
        there = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(there).free
        room = f"{format_size(free)} free at {folder}"
        if not there.is_dir():
            findings.fault(name, f"{there} is a file, expected a folder", "move it away")
        elif not os.access(there, os.W_OK | os.X_OK):
            findings.fault(name, f"{there} may not be written to", "change its mode or its owner")
        elif free < DISK_MARGIN_BYTES:
            findings.fault(name, room, "make room: `ups cache prune`, `ups runs prune`")
        elif free < FEW_BYTES:
            findings.warn(name, room, "little: `ups cache prune`, `ups runs prune` make some")
        else:
            findings.ok(name, room)
    return findings


def examine_gpu() -> list[Finding]:
    """What the driver lists, and whether the torch that is installed can use it."""
    findings = Findings("GPU")
    listed, driver, why = _ask_nvml()
    built_for = _cuda_of_torch()
    if not listed and not has_gpu_node():
        findings.skip("GPU", f"none here ({why})", "training takes the CPU")
        return findings
    if not listed:
        findings.fault("driver", f"a device is there, but {why}", "install the GPU's driver")
        return findings
    findings.ok("driver", f"{', '.join(listed)}; CUDA up to {driver[0]}.{driver[1]}")
    if built_for is None:
        remedy = "install a CUDA build: unset UV_FIND_LINKS and PIP_FIND_LINKS, `make install`"
        findings.fault("torch", "its build is for CPUs", remedy)
    elif driver[0] < built_for[0]:
        needs = ".".join(map(str, built_for))
        findings.fault("torch", f"it is built for CUDA {needs}", "install a newer driver")
    else:
        import torch

        if torch.cuda.is_available():
            findings.ok("torch", f"it uses {torch.cuda.get_device_name()}")
        else:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            findings.fault(
                "torch",
                f"it sees no GPU (CUDA_VISIBLE_DEVICES is {visible!r})",
                "see what `python -c 'import torch; torch.cuda.init()'` says",
            )
    return findings


def _ask_nvml() -> tuple[list[str], tuple[int, int], str]:
    """The GPUs with their memory, the newest CUDA of the driver, and why there are none."""
    nvml = gpu.import_nvml()
    if nvml is None:
        return [], (0, 0), "NVML library not found"
    try:
        nvml.nvmlInit()
        try:
            version = nvml.nvmlSystemGetCudaDriverVersion()
            handles = map(nvml.nvmlDeviceGetHandleByIndex, range(nvml.nvmlDeviceGetCount()))
            named = [
                f"{nvml.nvmlDeviceGetName(one)} "
                f"({format_size(nvml.nvmlDeviceGetMemoryInfo(one).total)})"
                for one in handles
            ]
        finally:
            nvml.nvmlShutdown()
    except nvml.NVMLError as error:
        return [], (0, 0), f"NVML: {error}"
    return named, (version // 1000, version % 1000 // 10), "NVML lists none"


def _cuda_of_torch() -> tuple[int, ...] | None:
    """The CUDA that torch was built for, without importing it; None: a build for CPUs."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return None
    text = (Path(found.origin).parent / "version.py").read_text()
    built = re.search(r"^cuda\b.*= '([\d.]+)'", text, re.M)
    return tuple(map(int, built[1].split("."))) if built else None


def examine_versions() -> list[Finding]:
    """Python, this package, what it needs, and the versions that it is locked to."""
    findings = Findings("versions")
    findings.ok("Python", f"{platform.python_version()} in {BIN_DIR.parent}")
    if platform.system() != "Linux":
        findings.warn("system", platform.system(), "Linux is what this project is tested on")
    findings.ok(PACKAGE, f"{__version__}, commit {commit()}, in {PROJECT_DIR}")
    if not is_clone():
        findings.skip("clone", "this is none: `ups up` and what needs it want one", "`git clone`")
    needed = _requirements()
    if needed is None:
        findings.fault("packages", f"{PACKAGE} is not installed", "`make install`")
        return findings
    bad = [text for one in needed if (text := _fault_of(one))]
    different = [text for one in _locked() if (text := _fault_of(one, must_be_there=False))]
    if bad:
        findings.fault("packages", "; ".join(bad), "`make install`")
    elif different:
        findings.warn("packages", f"not as locked: {'; '.join(different)}", "`make install`")
    else:
        as_locked = ", as constraints.txt says" if is_clone() else ""
        findings.ok("packages", f"all {len(needed)} that are needed{as_locked}")
    prefect = shutil.which("prefect")
    if prefect is None:
        activate = f"`source {BIN_DIR / 'activate'}`"
        findings.skip("prefect", "the command is not on this shell's PATH", activate)
    elif Path(prefect).parent != BIN_DIR:
        remedy = f"`source {BIN_DIR / 'activate'}`"
        findings.warn("prefect", f"the command of this shell is {prefect}", remedy)
    return findings


def _requirements() -> list[Requirement] | None:
    """Of this package, without its extras; None where it is not installed."""
    try:
        lines = importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return _that_hold(lines)


def _locked() -> list[Requirement]:
    try:
        lines = (PROJECT_DIR / "constraints.txt").read_text().splitlines()
    except FileNotFoundError:  # no clone
        return []
    return _that_hold(line for line in lines if line and not line.startswith(("#", "-")))


def _that_hold(lines: Any) -> list[Requirement]:
    """Those that are for this Python and system."""
    found = map(Requirement, lines)
    return [one for one in found if one.marker is None or one.marker.evaluate({"extra": ""})]


def _fault_of(wanted: Requirement, *, must_be_there: bool = True) -> str:
    try:
        version = importlib.metadata.version(wanted.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{wanted.name} is missing" if must_be_there else ""
    if wanted.specifier.contains(version, prereleases=True):
        return ""
    return f"{wanted.name} is {version}, expected {wanted.specifier}"


def examine_ports(stack: Stack, *, server_answers: bool) -> list[Finding]:
    """Whether the stack listens, or could, on the ports that it would take.

    Args:
        server_answers: whether a Prefect server answers at the stack's address.
    """
    findings = Findings("ports")
    for field, (part, _, variable) in PORT_NAMES.items():
        port = getattr(stack, field)
        process = stack.processes.running(PARTS_OF_PORTS[field])
        if process:
            findings.ok(str(port), f"{part} of this machine (pid {process.pid})")
            continue
        try:
            stack.check_port(field)
        except StackError as error:
            what, _, remedy = str(error).partition(": ")
            if field == "prefect_port" and server_answers:
                remedy = f"use it as it is, or set {variable} for one of `ups up`"
                findings.warn(str(port), "a Prefect server that `ups up` did not start", remedy)
            else:
                findings.fault(str(port), what, remedy)
        else:
            findings.ok(str(port), f"free for {part}")
    return findings
