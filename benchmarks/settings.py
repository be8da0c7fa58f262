"""How large a run of the benchmarks is, and where it works."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.machine import PROJECT_DIR


@dataclass(frozen=True, slots=True)
class Settings:
    """
    Attributes:
        size: multiplies the numbers of trajectories and bytes; 1 is what is published.
        num_solved: trajectories that the solver makes; the rest are shifted copies of them.
        num_frames, grid_points: T and X of a trajectory.
        peers: the Python of the peers' environment.
        results: where tables and pictures go.
    """

    folder: Path = PROJECT_DIR / ".bench"
    repeats: int = 5
    size: float = 1.0
    device: str = "cpu"
    num_solved: int = 64
    num_frames: int = 201
    grid_points: int = 1024
    peers: Path = PROJECT_DIR / ".venv-bench" / "bin" / "python"
    results: Path = PROJECT_DIR / "benchmarks" / "results"

    def scaled(self, count: int, least: int = 4) -> int:
        return max(least, round(count * self.size))

    @property
    def is_default(self) -> bool:
        """Whether the figures may be published."""
        places = ("folder", "results", "peers", "device")
        return replace(self, **{name: getattr(DEFAULT, name) for name in places}) == DEFAULT

    def describe(self) -> str:
        shape = f"{self.num_frames} frames of {self.grid_points} points"
        return f"{self.repeats} repeats, size {self.size:g}, {shape}"


DEFAULT = Settings()


def drop_page_cache(*paths: Path) -> str:
    """Drop the page cache, of the whole machine where we may, else of these files; says which."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("1")
    except OSError:
        for path in _files(paths):
            fd = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)
        return "posix_fadvise(DONTNEED) on the files"
    return "/proc/sys/vm/drop_caches"


def warm_page_cache(*paths: Path) -> None:
    """Have the files in the page cache."""
    for path in _files(paths):
        with path.open("rb", buffering=0) as file:
            buffer = bytearray(8 << 20)
            while file.readinto(buffer):
                pass


def run_checked(command: list[str], timeout_s: float = 60) -> str:
    """Standard output; a failure raises with what the command said."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-300:]
        raise RuntimeError(f"{' '.join(command[:4])}: {said}")
    return done.stdout


def _files(paths: tuple[Path, ...]) -> list[Path]:
    found = []
    for path in paths:
        found += [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    return found
