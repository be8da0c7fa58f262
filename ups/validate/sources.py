"""What is known of the sources before anything is fetched or read: sizes, digests, trajectories."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ups.config import SPLITS, RunConfig, Split
from ups.config_data import Task
from ups.data.seed import is_seeded_by_us
from ups.data.sources import Wanted, wanted
from ups.data.stamps import beside, read_stamp
from ups.latents.key import ENCODED_SPLITS
from ups.latents.store import estimate_cache_size_mb

if TYPE_CHECKING:
    from ups.data.objectstore import ObjectInfo

ITEM_BYTES = 4  # of a float32 field value
NUM_FRAMES = 201  # of PDEBench's trajectories, and of generated ones


@dataclass(frozen=True, slots=True)
class Known:
    """A source of a task, and what could be learned about it. None where that is not known.

    Attributes:
        num_bytes: of the whole object or file.
        fetch_bytes: still to be transferred.
        sha256: of the whole; from the manifest or the stamp.
        num_trajectories: of the rows that belong to the split.
        is_exact: whether sizes are of what is there, not of what is going to be generated.
    """

    wanted: Wanted
    num_bytes: int | None = None
    fetch_bytes: int | None = None
    sha256: str | None = None
    num_trajectories: int | None = None
    num_frames: int = NUM_FRAMES
    is_exact: bool = True

    @property
    def rows(self) -> tuple[int, int] | None:
        return self.wanted.rows

    @property
    def is_staged(self) -> bool:
        return self.is_exact and self.fetch_bytes == 0


Sources = Mapping[Split, Sequence[Known]]


def planned(config: RunConfig, split: Split) -> list[Known]:
    """The sources of a split, of all tasks, by what the config alone says of them.

    Raises:
        DataError: the config names no objects, and there are no files either.
    """
    return [known for task in config.data.tasks for known in planned_of(config, task, split)]


def planned_of(config: RunConfig, task: Task, split: Split) -> list[Known]:
    """The same, of one task."""
    if task.sources is not None and split not in task.sources:
        return []
    found = []
    for source in wanted(config.of_task(task), split):
        known = Known(source)
        if source.rows is not None:
            known = replace(known, num_trajectories=source.rows[1] - source.rows[0])
        if is_seeded_by_us(task):
            assert task.generate is not None
            total = task.generate.num_trajectories.get(split)
            if total is not None:
                num_bytes = total * NUM_FRAMES * config.data.grid_points * ITEM_BYTES
                count = known.num_trajectories or total
                known = replace(
                    known,
                    num_bytes=num_bytes,
                    fetch_bytes=num_bytes,
                    num_trajectories=count,
                    is_exact=False,
                )
        found.append(known)
    return found


def on_this_machine(known: Known) -> Known:
    """With what file and stamp tell; reads neither data nor their header."""
    path = known.wanted.path
    if not path.is_file():
        return known
    size, stamp = path.stat().st_size, read_stamp(path)
    known = replace(known, num_bytes=size, fetch_bytes=0, is_exact=True)
    if stamp is not None:
        known = replace(known, sha256=stamp.sha256)
    return known


def compared(known: Known, info: ObjectInfo) -> Known:
    """With what the store says; a staged file that is not the object is fetched again."""
    from ups.data.transfer import expected_digest

    stamp = read_stamp(known.wanted.path)
    is_same = known.is_staged and known.num_bytes == info.num_bytes  # without a stamp it is hashed
    if is_same and stamp is not None:
        is_same = stamp.sha256 == expected_digest(stamp, info)
    return replace(
        known,
        num_bytes=info.num_bytes,
        fetch_bytes=0 if is_same else info.num_bytes,
        sha256=info.sha256 or (known.sha256 if is_same else None),
        is_exact=True,
    )


def count_trajectories(config: RunConfig, known: Known) -> int | None:
    """Of its rows; by the size of the object where nothing better is known."""
    if known.num_trajectories is not None or known.num_bytes is None:
        return known.num_trajectories
    return known.num_bytes // (known.num_frames * config.data.grid_points * ITEM_BYTES)


def fetch_bytes(sources: Sources) -> int | None:
    """Still to be transferred in all, an object of several splits once; None: not known."""
    return _sum_of_files(sources, lambda known: known.fetch_bytes)


def disk_bytes(sources: Sources) -> int | None:
    """That downloads still have to allocate: what a partial one has is not asked for again."""

    def still(known: Known) -> int | None:
        if not known.fetch_bytes:
            return known.fetch_bytes
        partial = beside(known.wanted.path, "part")
        present = partial.stat().st_blocks * 512 if partial.exists() else 0
        return max(0, known.fetch_bytes - present)

    return _sum_of_files(sources, still)


def of_task(sources: Sources, name: str) -> dict[Split, list[Known]]:
    """Those of one task alone."""
    return {
        split: [known for known in of_split if known.wanted.task == name]
        for split, of_split in sources.items()
    }


def latent_bytes(
    config: RunConfig, sources: Sources, tasks: Collection[str] | None = None
) -> int | None:
    """Of train and val as stored in the cache; None where a number of trajectories is unknown.

    Args:
        tasks: the names of those that count; default: all.
    """
    names = [task.name for task in config.data.tasks] if tasks is None else tasks
    total = 0.0
    for name, split in itertools.product(names, ENCODED_SPLITS):
        known = of_task(sources, name).get(split, [])
        for source in known:
            count = count_trajectories(config, source)
            if count is None:
                return None
            total += estimate_cache_size_mb(config, count, source.num_frames) * 1e6
        if not known:
            return None
    return round(total)


def encoded_trajectories(config: RunConfig, sources: Sources) -> int | None:
    counts = [
        count_trajectories(config, s) for split in ENCODED_SPLITS for s in sources.get(split, ())
    ]
    known = [count for count in counts if count is not None]
    return sum(known) if known and len(known) == len(counts) else None


def all_of(sources: Sources) -> Iterable[Known]:
    return (known for split in SPLITS for known in sources.get(split, ()))


def _sum_of_files(sources: Sources, of: Callable[[Known], int | None]) -> int | None:
    each = {known.wanted.path: of(known) for known in all_of(sources)}
    known = [value for value in each.values() if value is not None]
    return sum(known) if known and len(known) == len(each) else None
