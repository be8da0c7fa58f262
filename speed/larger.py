"""Larger: shuffled batches of latents that are twice as large as the memory left for them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from speed import inputs
from speed.harness import Comparison, Contender, Result, Sample, alternate
from speed.load import latent_file
from speed.settings import Settings
from speed.worker import Worker
from ups.config import dump_config, load_config
from ups.latents.build import CacheEntry, ensure
from ups.latents.loader import load
from ups.machine import page_cache
from ups.machine.openmp import bound_spinning
from ups.training.step import Feed, epoch_order

CACHE = "cache-larger"
BATCH = 8
SHARE, BESIDE_BYTES = 0.5, 32 << 20  # of the latents, what there is memory for, and beside them
MEMORY, LIMIT = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
MEMMAP = "memmap"
NOTES = [
    f"Larger: one epoch, shuffled, of whole trajectories, {BATCH} a batch, after one that is not "
    "timed; nothing is computed, so nothing hides the disk. In a process of its own that may take "
    "memory for half of the latents and 32 MB more, pages of files included. `read`: from the "
    "disk, of all bytes of the latents. The disk is a virtual one.",
    "ours: what is read for each batch, the next one's asked for ahead. memmap: NumPy's, as it "
    "comes. resident: in RAM, without a limit.",
]


def prepare(settings: Settings) -> None:
    """Make the entry."""
    config = inputs.config(settings, CACHE)
    ensure(config, inputs.tiled_sources(settings, settings.scaled(inputs.NUM_TILED)))


def run(settings: Settings) -> Iterator[Comparison]:
    num = settings.scaled(inputs.NUM_TILED)
    changes = {"training.time_stride": 1, "training.batch_size": BATCH}
    config = inputs.config(settings, CACHE, changes)
    entry = ensure(config, inputs.tiled_sources(settings, num))
    path, _ = latent_file(config, entry)
    ways = {"ours": "auto", MEMMAP: MEMMAP, "resident": "ram"}
    config_file = settings.folder / "larger.yaml"
    config_file.write_text(dump_config(config))
    measure_way = partial(_measure, config_file, entry, path)
    contenders = [
        Contender(
            name,
            "bound" if way == "ram" else "peer" if i else "ours",
            partial(measure_way, way),
            partial(page_cache.drop, path),
        )
        for i, (name, way) in enumerate(ways.items())
    ]
    phase = (
        f"batches of {BATCH} from latents of twice the memory, {path.stat().st_size / 1e6:.0f} MB"
    )
    try:
        with _group():
            pass
    except OSError as refused:
        why = f"no control group with a limit of memory can be made here: {refused}"
        yield Comparison(phase, [Result("ours", "ours", failed=why)])
        return
    yield Comparison(
        phase=phase,
        unit="trajectories/s",
        better="higher",
        results=alternate(contenders, settings.repeats, warm_ups=0),
        notes=NOTES,
    )


def _measure(config_file: Path, entry: CacheEntry, path: Path, way: str) -> Sample:
    env: dict[str, str] = {}
    bound_spinning(env)  # as a run's
    with _group() as group, Worker("speed.larger", env=env) as worker:
        worker.call("enter", group=str(group))
        if way != "ram":
            limit = SHARE * path.stat().st_size + BESIDE_BYTES
            (group / LIMIT).write_text(str(int(limit)))
        given = {"config": str(config_file), "entry": entry.model_dump_json(), "way": way}
        rate, share_read = worker.call("measure", **given)
    return Sample(rate, {"read": share_read})


@contextmanager
def _group() -> Iterator[Path]:
    """A control group of its own, of version 1, which a process may enter.

    Raises:
        OSError: none can be made here.
    """
    group = MEMORY / f"ups-speed-{os.getpid()}"
    group.mkdir()
    try:
        if not (group / LIMIT).exists():
            raise FileNotFoundError(group / LIMIT)
        yield group
    finally:
        group.rmdir()


def enter(group: str) -> None:
    """Put this process into a control group; what it took before is not counted there."""
    (Path(group) / "cgroup.procs").write_text(str(os.getpid()))


def measure(config: str, entry: str, way: str) -> tuple[float, float]:
    """Trajectories a second of an epoch, and what of their bytes the disk was asked for."""
    preload = {} if way == MEMMAP else {"features.preload": way}
    run_config = load_config(config, preload).only_problem()
    of_cache = CacheEntry.model_validate_json(entry)
    data = load(run_config, {inputs.PROBLEM: of_cache}, {}, device="cpu").train
    num_bytes = 2 * len(data) * data.num_frames * run_config.latent.tokens * run_config.latent.dim
    feed = Feed(data, run_config, "cpu")
    if way == MEMMAP:
        path, shape = latent_file(run_config, of_cache)
        offset = path.stat().st_size - num_bytes
        values = np.memmap(path, np.float16, "r", offset, tuple(shape))
    for epoch in (0, 1):  # the second one is what counts
        order_M = epoch_order(data, run_config, epoch + 1)
        feed.begin_epoch(order_M, 0)
        before, started = _read_bytes(), time.perf_counter()
        for index_B in order_M.split(BATCH):
            if way == MEMMAP:
                values[index_B.numpy()]
            else:
                feed.draw(len(index_B))
        seconds, num_read = time.perf_counter() - started, _read_bytes() - before
    return len(data) / seconds, num_read / num_bytes


def _read_bytes() -> int:
    """What this process has had the disk read."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["read_bytes"])
