"""How large a run of the benchmarks is, and where it works."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from speed.worker import PROJECT_DIR


@dataclass(frozen=True, slots=True)
class Settings:
    """The size of a run of the benchmarks, and its folders.

    Attributes:
        size: multiplies the numbers of trajectories and bytes; 1 is what is published.
        num_solved: trajectories that the solver makes; the rest are shifted copies of them.
        num_frames, grid_points: T and X of a trajectory.
        peers: the Python of the peers' environment.
        results: where tables and pictures go.
    """

    folder: Path = PROJECT_DIR / ".speed"
    repeats: int = 5
    size: float = 1.0
    device: str = "cpu"
    num_solved: int = 64
    num_frames: int = 201
    grid_points: int = 1024
    peers: Path = PROJECT_DIR / ".venv-speed" / "bin" / "python"
    results: Path = PROJECT_DIR / "speed" / "results"

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
