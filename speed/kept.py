"""Growth of what is kept: entries, shards, objects of a prefix, runs, benchmarks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from functools import partial
from pathlib import Path
from unittest.mock import patch

from speed import inputs
from speed.harness import Comparison, Contender, alternate
from speed.s3 import BUCKET, make_objects, serve
from speed.settings import Settings
from ups.config import dump_config
from ups.data.objectstore import ObjectStore
from ups.data.sources import stage
from ups.files import write_json
from ups.latents import store
from ups.latents.latent_file import LatentFile
from ups.runs.index import find_runs, short_ids
from ups.runs.look import look, to_png
from ups.runs.metrics import write_rows
from ups.runs.stored import RunInfo
from ups.startup.judge.compare import Spread, TrendPoint
from ups.startup.judge.history import History, JudgedBenchmark, write_csv
from ups.startup.measure.records import RunRecord
from ups.startup.show.pictures import trend_figure

Measured = Callable[[], object]
Make = Callable[[Settings, Path, int], AbstractContextManager[Measured]]

LISTED, NUM_CHUNKS, PART = 20, 560, 10
SCENARIOS = ("legacy", "cold", "warm", "changed-config", "no-warm_up")
PHASES = ("trigger", "import", "download", "cache", "load", "model", "first step", "unaccounted")
NOTES = ["Made up, in their real form, in the page cache; the store is on loopback."]
DAY_S = 86400.0


def run(settings: Settings) -> Iterator[Comparison]:
    """A row for each kind: all there may be, beside a tenth of them."""
    for phase, (num, make) in KINDS.items():
        folder, most = inputs.empty(settings.folder / "kept"), settings.scaled(num, PART)
        with (
            make(settings, folder / "part", most // PART) as few,
            make(settings, folder / "all", most) as all_of_them,
        ):
            contenders = [
                Contender(f"{most:,}", "ours", partial(_ms, all_of_them)),
                Contender(f"{most // PART:,}", "peer", partial(_ms, few)),
            ]
            results = alternate(contenders, settings.repeats)
        yield Comparison(phase=phase, unit="ms", results=results, notes=NOTES)
    inputs.empty(settings.folder / "kept")


def _ms(work: Measured) -> float:
    started = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - started)


@contextmanager
def _entries(_settings: Settings, folder: Path, num: int) -> Iterator[Measured]:
    fields = {"task": "burgers1d", "latent": {"dim": 32, "tokens": 16}}
    file = LatentFile(
        name="train_000.safetensors",
        split="train",
        shape=(9000, 101, 16, 32),
        dtype="float16",
        dt=0.01,
        parameters={"nu": 0.01},
        chunk_rows=16,
        checksums=("0" * 16,) * NUM_CHUNKS,
    )
    for i in range(num):
        manifest = store.Manifest(
            config_hash=f"{i:012x}",
            key_fields={**fields, "seed": i},
            generation=f"20260101T000000-{i:06x}",
            generated_at=0.0,
            encoder={},
            files=(file,),
        )
        store.write_manifest(store.generation_dir(folder, manifest), manifest)
        pointer = store.entry_dir(folder, manifest.config_hash) / store.POINTER_NAME
        pointer.write_text(manifest.generation)
    yield lambda: store.explain_miss(folder, {**fields, "seed": -1})


@contextmanager
def _shards(settings: Settings, folder: Path, num: int) -> Iterator[Measured]:
    with _objects(folder, num) as (objects, keys):
        config = inputs.config(
            settings,
            "kept-cache",
            {
                "data.bucket": BUCKET,
                "data.root": str(folder / "staged"),
                "data.sources": {
                    "train": [{"key": key} for key in keys],
                    "val": [{"key": keys[0]}],
                    "test": [{"key": keys[0]}],
                },
            },
        )
        with patch("ups.data.header.check_own_values"):  # they are no trajectories
            stage(config, "train", objects)
            yield lambda: stage(config, "train", objects)


@contextmanager
def _manifest(_settings: Settings, folder: Path, num: int) -> Iterator[Measured]:
    with _objects(folder, num) as (objects, keys):
        yield lambda: objects.head(BUCKET, keys[-1], fresh=True)


@contextmanager
def _uploads(_settings: Settings, folder: Path, num: int) -> Iterator[Measured]:
    with _objects(folder, num) as (objects, keys):
        file = folder / "s3" / BUCKET / keys[0]
        yield lambda: objects.upload(file, BUCKET, f"{keys[0]}-more")


@contextmanager
def _objects(folder: Path, num: int) -> Iterator[tuple[ObjectStore, list[str]]]:
    (keys,) = make_objects(folder / "s3", {"prefix": [8] * num}).values()
    with serve(folder / "s3", folder / "log", ["127.0.0.1"]) as server:
        url = f"http://127.0.0.1:{server.ports['127.0.0.1']}"
        with patch.dict("os.environ", server.env(url)), closing(ObjectStore(url)) as objects:
            yield objects, keys


@contextmanager
def _runs(settings: Settings, folder: Path, num: int) -> Iterator[Measured]:
    text = dump_config(inputs.config(settings, "kept-cache"))
    epochs = [{"epoch": i, "step": i, "time": 0.0, "train/loss": 0.1} for i in range(25)]
    for i in range(num):
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(1e9 + 60 * i))
        run_dir = folder / f"{stamp}-smoke-{i * 7919:032x}"
        run_dir.mkdir(parents=True)
        (run_dir / "config.yaml").write_text(text)
        ended = {"state": "completed", "host": "here", "pid": 1, "process_started_at": 0.0}
        RunInfo(id=f"{i:032x}", name="smoke", started_at=1e9 + 60 * i, **ended).save(run_dir)
        write_rows(run_dir, [*epochs, {"startup/ttfs_s": 1.0, "time": 0.0}])
        write_json(run_dir / "scores.json", {"rollout": {"nRMSE": 0.1}})

    def listed() -> object:
        found = find_runs(folder, LISTED + 1)
        return short_ids(folder, [run.id for run in found])

    yield listed


def _benchmarks(num: int) -> Iterator[JudgedBenchmark]:
    for i in range(num):
        runs = [
            RunRecord(
                scenario=name,
                repeat=repeat,
                flow_run_id="0" * 32,
                triggered_at=1e9 + DAY_S * i,
                ttfs_s=1.0 + 0.001 * (i % 7),
                phases=dict.fromkeys(PHASES, 0.1),
                bounds=dict.fromkeys(PHASES, "what bounds it"),
            )
            for repeat in range(5)
            for name in SCENARIOS
        ]
        yield JudgedBenchmark(
            id=f"{i:06d}",
            started_at=1e9 + DAY_S * i,
            machine_id="one",
            machine={},
            versions={},
            commit="c0ffee",
            settings={},
            runs=tuple(runs),
        )


@contextmanager
def _history(_settings: Settings, folder: Path, num: int) -> Iterator[Measured]:
    history = History(folder)
    for benchmark in _benchmarks(num):
        history.save(benchmark)
    yield lambda: History(folder).benchmarks()


@contextmanager
def _csv(_settings: Settings, folder: Path, num: int) -> Iterator[Measured]:
    benchmarks = list(_benchmarks(num))
    yield lambda: write_csv(folder / "runs.csv", benchmarks)


@contextmanager
def _trend(_settings: Settings, _folder: Path, num: int) -> Iterator[Measured]:
    points = [
        TrendPoint(
            scenario=name,
            at=1e9 + DAY_S * i,
            ttfs=Spread.of([1.0, 1.1 + 0.01 * (i % 7), 1.3]),
            worse=i % 50 == 0,
        )
        for name in SCENARIOS
        for i in range(num)
    ]
    with look():
        yield lambda: to_png(trend_figure(points))


KINDS: dict[str, tuple[int, Make]] = {
    "explain a miss, entries": (1_000, _entries),
    "stage shards that are there": (200, _shards),
    "read the manifest of objects": (10_000, _manifest),
    "upload an object beside objects": (10_000, _uploads),
    f"list the newest {LISTED} of runs": (5_000, _runs),
    "read a history of benchmarks": (1_100, _history),
    "draw the trend of benchmarks": (1_100, _trend),
    "write benchmarks as CSV": (1_100, _csv),
}
