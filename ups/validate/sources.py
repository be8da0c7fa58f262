"""What is known of the sources before anything is fetched or read: sizes, digests, trajectories.

The config tells some of it, files and stamps on this machine more, and the object store the rest.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ups.background import Background
from ups.config import SPLITS, Problem, RunConfig, Split
from ups.data.seed import is_seeded_by_us, only_source
from ups.data.sources import Wanted, wanted
from ups.data.stamps import read_stamp
from ups.errors import UpsError
from ups.latents.key import ENCODED_SPLITS
from ups.latents.store import estimate_cache_size_mb
from ups.validate.check import Checks

if TYPE_CHECKING:
    from ups.data.objectstore import ObjectInfo, ObjectStore

ITEM_BYTES = 4  # of a float32 field value
NUM_FRAMES = 201  # of PDEBench's trajectories, and of generated ones
NUM_THREADS = 8  # that ask the store
MOST_LISTED = 8

Place = tuple[str, str]  # bucket, key


@dataclass(frozen=True, slots=True)
class Known:
    """A source of a split, and what could be learned about it. None where that is not known.

    Attributes:
        label: of its split in messages.
        num_bytes: of the whole object or file.
        fetch_bytes: still to be transferred.
        sha256: of the whole; from the manifest or the stamp.
        num_trajectories: of the rows that belong to the split.
        parameter: of the equation, where the file does not hold it.
        is_exact: whether sizes are of what is there, not of what is going to be generated.
        has_blocks: whether its manifest has digests of its blocks.
        is_read: whether shape and parameter are what file or header say.
    """

    problem: Problem
    label: str
    wanted: Wanted
    num_bytes: int | None = None
    fetch_bytes: int | None = None
    sha256: str | None = None
    num_trajectories: int | None = None
    num_frames: int = NUM_FRAMES
    parameter: float | None = None
    is_exact: bool = True
    has_blocks: bool = False
    is_read: bool = False

    @property
    def place(self) -> Place | None:
        """Where the object is; None for a local file."""
        bucket, key = self.wanted.bucket, self.wanted.key
        return None if bucket is None or key is None else (bucket, key)

    @property
    def is_staged(self) -> bool:
        """Whether it need not be fetched."""
        return self.is_exact and self.fetch_bytes == 0


Sources = Sequence[Known]


def find_sources(config: RunConfig, checks: Checks, *, to_seed: bool = False) -> list[Known]:
    """The sources of all problems and splits, as far as config, files and stamps tell.

    Args:
        checks: get a fault for each split whose sources are not known.
        to_seed: whether splits that are generated must have the one object that is uploaded.
    """
    found: list[Known] = []
    for split, problem in itertools.product(SPLITS, config.data.problems):
        try:
            if to_seed and is_seeded_by_us(problem):
                only_source(config, problem, split)
            found += map(on_this_machine, _planned(config, problem, split))
            _warn_of_left_out(config, problem, split, checks)
        except UpsError as error:
            checks.fault(config.data.label(problem, split), str(error))
    return found


def _warn_of_left_out(config: RunConfig, problem: Problem, split: Split, checks: Checks) -> None:
    if problem.sources is not None:
        return
    from ups.data.pdebench import find_files, left_out

    place = config.data_root, problem.name, split
    if others := [path.name for path in left_out(*place)]:
        taken, more = find_files(*place)[0].name, len(others) - MOST_LISTED
        listed = ", ".join(others[:MOST_LISTED]) + (f" and {more} more" if more > 0 else "")
        text = f"{taken} is taken, and left out are {listed}: move away what is not meant"
        checks.warn(config.data.label(problem, split), text)


def planned(config: RunConfig) -> list[Known]:
    """The sources of all problems and splits, by what the config alone says of them.

    Raises:
        DataError: the config names no objects, and there are no files either.
    """
    each = itertools.product(config.data.problems, SPLITS)
    return [known for problem, split in each for known in _planned(config, problem, split)]


def _planned(config: RunConfig, problem: Problem, split: Split) -> list[Known]:
    seeded = problem.generate if is_seeded_by_us(problem) else None
    total = None if seeded is None else seeded.num_trajectories.get(split)
    found, label = [], config.data.label(problem, split)
    for source in wanted(config.of_problem(problem), split):
        known = Known(problem, label, source, num_frames=-(-NUM_FRAMES // config.encoder.t_stride))
        if source.rows is not None:
            known = replace(known, num_trajectories=source.rows[1] - source.rows[0])
        if total is not None:
            num_bytes = total * NUM_FRAMES * config.data.grid_points * ITEM_BYTES
            known = replace(
                known,
                num_bytes=num_bytes,
                fetch_bytes=num_bytes,
                num_trajectories=known.num_trajectories or total,
                is_exact=False,
                has_blocks=True,
            )
        found.append(known)
    return found


def on_this_machine(known: Known) -> Known:
    """With what file and stamp tell; reads neither data nor their header."""
    path = known.wanted.path
    if not path.is_file():
        return known
    stamp = read_stamp(path)
    return replace(
        known,
        num_bytes=path.stat().st_size,
        fetch_bytes=0,
        sha256=known.sha256 if stamp is None else stamp.sha256,
        is_exact=True,
    )


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
        has_blocks=info.blocks is not None,
    )


def select(
    sources: Sources, splits: Collection[Split], problems: Collection[str] | None = None
) -> list[Known]:
    """Those of some splits; of all problems, or those of these names."""
    return [
        known
        for known in sources
        if known.wanted.split in splits and (problems is None or known.problem.name in problems)
    ]


def count_trajectories(config: RunConfig, known: Known) -> int | None:
    """Of its rows; by the size of the object where nothing better is known."""
    if known.num_trajectories is not None or known.num_bytes is None:
        return known.num_trajectories
    return known.num_bytes // (NUM_FRAMES * config.data.grid_points * ITEM_BYTES)


def fetch_bytes(sources: Sources) -> int | None:
    """Still to be transferred in all, an object of several splits once; None: not known."""
    return total_of({known.wanted.path: known.fetch_bytes for known in sources}.values())


def latent_bytes(
    config: RunConfig, sources: Sources, problems: Collection[str] | None = None
) -> int | None:
    """Of train and val as stored in the cache; None where a number of trajectories is unknown.

    Args:
        problems: the names of those that count; default: all.
    """
    names = [problem.name for problem in config.data.problems] if problems is None else problems
    sizes: list[int | None] = []
    for name, split in itertools.product(names, ENCODED_SPLITS):
        for known in (own := select(sources, [split], [name])):
            count = count_trajectories(config, known)
            mb = None if count is None else estimate_cache_size_mb(config, count, known.num_frames)
            sizes.append(None if mb is None else round(mb * 1e6))
        if not own:
            return None
    return total_of(sizes)


def total_of(numbers: Iterable[int | None]) -> int | None:
    """Their sum; None where there are none, or one of them is not known."""
    each = list(numbers)
    known = [number for number in each if number is not None]
    return sum(known) if known and len(known) == len(each) else None


@dataclass(slots=True)
class Answers:
    """What the store says.

    Attributes:
        found: the objects that are there.
        missing: why others are not: no such key or bucket.
        refused: why others cannot be looked at.
        unreachable: why the store as a whole gave no answer; a run takes what is staged then.
        denied: why it answers no question at all, such as missing credentials.
    """

    found: dict[Place, ObjectInfo] = field(default_factory=dict)
    missing: dict[Place, str] = field(default_factory=dict)
    refused: dict[Place, str] = field(default_factory=dict)
    unreachable: str | None = None
    denied: str | None = None


def ask_store(config: RunConfig, sources: Sources, timeout_s: float) -> Answers:
    """One question for each object, without a second try; done in time whatever the store does."""
    answers = Answers()
    places = list(dict.fromkeys(place for known in sources if (place := known.place) is not None))
    if not places:
        return answers
    from ups.data.objectstore import ObjectStore
    from ups.data.s3errors import Retry

    try:
        store = ObjectStore(config.data.endpoint_url, retry=Retry(attempts=1, lasting_s=0))
    except UpsError as error:
        return Answers(denied=str(error))
    deadline = time.monotonic() + timeout_s
    # Daemon threads: one that still waits for an answer does not keep the process.
    threads = [
        Background(functools.partial(_ask, store, part, answers), "ask the object store")
        for i in range(NUM_THREADS)
        if (part := places[i::NUM_THREADS])
    ]
    for thread in threads:
        if not thread.is_done(max(0.0, deadline - time.monotonic())):
            # Not the same object: the thread may still write into that.
            asked = dict.fromkeys(store.endpoint_of(bucket) for bucket, _ in places)
            late = f"{' and '.join(asked)} gave no answer in {timeout_s:g} s"
            return Answers(unreachable=late)
        thread.result()
    store.close()
    return answers


def _ask(store: ObjectStore, places: Sequence[Place], answers: Answers) -> None:
    from ups.data.s3errors import StoreRefuses, answer, describe, transport_errors

    for place in places:
        if answers.unreachable or answers.denied:
            return
        try:
            answers.found[place] = store.head(*place)
        except UpsError as error:
            status = answer(error.__cause__)[1]
            if status == 404:
                answers.missing[place] = str(error)
            # What one question says holds for all: the object's address is left out.
            elif isinstance(error, StoreRefuses):
                answers.denied = error.reason
            elif isinstance(error.__cause__, transport_errors()) and not status:
                reason = describe(error.__cause__)
                endpoint = store.endpoint_of(place[0])
                answers.unreachable = f"{endpoint} cannot be reached: {reason}"
            else:
                answers.refused[place] = str(error)
