"""The whole startup of the PDEBench-sized set: from the trigger to the first step, and by phase."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from typing import Any

import yaml

from benchmarks import fixture, gpu_data, startup
from benchmarks.boot import live_stack
from benchmarks.harness import Comparison, Contender, Sample, alternate
from benchmarks.settings import Settings
from benchmarks.worker import Worker
from ups.data.stamps import read_stamp

BUCKET, KEY = "bench", "pdebench/burgers.h5"
REPEATS = 3
NOTES = [
    "Whole startup: through Prefect, on a stack of its own, the set in its store on loopback; "
    "nothing staged, no latents, warm start. The store has been asked for the object before, which "
    f"it then hashes. {REPEATS} repeats. The plan hoped for 6 to 9 minutes.",
]


def run(settings: Settings) -> Iterator[Comparison]:
    source = gpu_data.data_set(settings)
    folder = fixture.empty(settings.folder / "gpu-startup")
    objects = folder / ".stack" / "s3" / BUCKET / KEY
    objects.parent.mkdir(parents=True)
    os.link(source, objects)
    stamp = read_stamp(source)
    assert stamp is not None
    manifest = {objects.name: {"sha256": stamp.sha256, "bytes": stamp.num_bytes}}
    objects.with_name("manifest.json").write_text(json.dumps(manifest))
    config = gpu_data.config(settings, "gpu-startup/cache", _overrides(settings))
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))

    def fresh() -> None:
        for name in ("staged", "cache"):
            shutil.rmtree(folder / name, ignore_errors=True)

    with live_stack(folder, path) as live:
        with Worker("benchmarks.clients", env=live.stack.store_env()) as worker:
            worker.call("first_head", bucket=BUCKET, key=KEY)

        def whole() -> Sample:
            breakdown = live.run_once("warm")
            phases = {f"{p['phase']} s": p["seconds"] for p in breakdown["phases"]}
            return Sample(breakdown["ttfs_s"], phases)

        results = alternate(
            [
                Contender("ours", "ours", whole, fresh),
            ],
            min(REPEATS, settings.repeats),
            warm_ups=0,
        )
    fixture.empty(folder)
    num_bytes = source.stat().st_size
    yield Comparison(
        section="gpu_startup",
        phase=f"trigger → first step, {num_bytes / 1e9:.2f} GB from a loopback store",
        unit="s",
        better="lower",
        results=results,
        notes=NOTES,
    )
    yield from startup.run(settings)


def _overrides(settings: Settings) -> dict[str, Any]:
    folder = settings.folder / "gpu-startup"
    rows = gpu_data.split_rows(settings)
    return {
        "runs_dir": str(folder / "runs"),
        "data.root": str(folder / "staged"),
        "data.bucket": BUCKET,
        "data.sources": {
            split: [{"key": KEY, "rows": list(rows[split])}] for split in ("train", "val", "test")
        },
        "data.generate": None,
        "stages.operator.epochs": 1,
    }
