"""What a run has learned about itself, for its breakdown, however it was started."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ups.config import RunConfig, Split
from ups.config_data import Task
from ups.data.sources import Staged
from ups.telemetry.gpu import GpuWatch
from ups.telemetry.phases import Span

if TYPE_CHECKING:
    from ups.latents.build import CacheEntry
    from ups.latents.loader import Latents
    from ups.training.evaluate import Scores
    from ups.training.loop import TrainResult

Part = tuple[str, Split]
"""The name of a task, and one of its splits."""


class Cached(NamedTuple):
    """The cache entry of a task, and whether this run found it."""

    entry: CacheEntry
    is_reused: bool


@dataclass(slots=True)
class Story:
    """What a run has learned about itself so far; None or empty where it has not got there.

    Attributes:
        staged: the files of each part.
        config_hashes: of the tasks, in their order; entries: by the names of the tasks.
    """

    config: RunConfig
    run_dir: Path
    gpu: GpuWatch = field(default_factory=GpuWatch)
    staged: dict[Part, Sequence[Staged]] = field(default_factory=dict)
    config_hashes: list[str] = field(default_factory=list)
    entries: dict[str, Cached] = field(default_factory=dict)
    latents: Latents | None = None
    result: TrainResult | None = None
    scores: Scores | None = None
    first_step_at: float | None = None
    failure: BaseException | None = None
    provision: Sequence[Span] = ()  # before the trigger, on a machine rented for this run

    @property
    def config_hash(self) -> str | None:
        """The keys of all cache entries that are known."""
        return ", ".join(self.config_hashes) or None

    @property
    def cache_reused(self) -> bool | None:
        """Whether all entries were found; None where there are none."""
        return all(c.is_reused for c in self.entries.values()) if self.entries else None

    def staged_of(self, task: Task, splits: Iterable[Split]) -> dict[str, Sequence[Staged]]:
        """The files of these splits of a task."""
        return {split: self.staged[task.name, split] for split in splits}

    def files(self) -> Iterator[Staged]:
        """All that is staged."""
        return (staged for of_part in self.staged.values() for staged in of_part)
