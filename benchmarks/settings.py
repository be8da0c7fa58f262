"""How large a run of the benchmarks is, and where it works."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.worker import PROJECT_DIR
from ups.startup.page_cache import files_in


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


def warm_page_cache(*paths: Path) -> None:
    """Have the files in the page cache."""
    for path in files_in(paths):
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
