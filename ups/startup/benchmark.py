"""A benchmark's record before its first run, and how long it is going to take."""

from __future__ import annotations

import hashlib
import secrets
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ups.config import RunConfig, load_config
from ups.startup.history import canonical
from ups.startup.page_cache import PageCache, setting
from ups.startup.records import BenchmarkRecord
from ups.telemetry import machine

FOLDER = Path("data/benchmarks")
HISTORY = "history.sqlite"
MACHINE_FACTS = ("processor", "cores", "RAM", "disk", "GPU", "kernel")
# Of a config, what the time to the first step does not depend on, or the benchmark sets itself.
WITHOUT_EFFECT: Any = {
    **dict.fromkeys(("name", "runs_dir", "checkpoint", "evaluation", "logging", "startup"), True),
    "data": {"root": True, "sources": True, "generate": {"num_trajectories"}},
    "training": {"latent_cache_dir": True},
}
# Of a run besides its time to first step: preparing, training, scoring, the end of its process.
BESIDE_S = 5.0
UNKNOWN_RUN_S = 7.0  # of two cores with 512 trajectories, all scenarios alike


def new_record(
    config: str, num_trajectories: int, page_cache: PageCache, folder: Path, run_id: str | None
) -> BenchmarkRecord:
    """Without runs. Its settings are all that times depend on beside machine and code."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = machine.record(folder)
    return BenchmarkRecord(
        id=f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}",
        started_at=time.time(),
        flow_run_id=run_id,
        machine_id=machine.identity(folder),
        machine={name: facts[name] for name in MACHINE_FACTS},
        versions=machine.versions(),
        commit=machine.commit(),
        settings={
            "config": config,
            "config digest": config_digest(load_config(config)),
            "num_trajectories": num_trajectories,
            "page cache": setting(page_cache),
        },
    )


def config_digest(config: RunConfig) -> str:
    """Of what times depend on; a default counts as nothing, so that a new field changes nothing."""
    told = config.model_dump(mode="json", exclude=WITHOUT_EFFECT, exclude_defaults=True)
    return hashlib.sha256(canonical(told).encode()).hexdigest()[:12]


def estimate(
    record: BenchmarkRecord, names: Sequence[str], repeats: int, history: Sequence[BenchmarkRecord]
) -> str:
    """How many runs there will be, and how long that takes: as earlier ones like this one did."""
    num = len(names) * repeats
    alike = [
        b for b in history if (b.machine_id, b.settings) == (record.machine_id, record.settings)
    ]
    known = [
        statistics.median(found)
        for name in names
        if (found := [run.ttfs_s for b in alike for run in b.runs if run.scenario == name])
    ]
    of_run_s = statistics.mean(known) + BESIDE_S if known else UNKNOWN_RUN_S
    source = "by earlier benchmarks"
    if not known:
        source = (
            f"at {UNKNOWN_RUN_S:g} s a run; more than 512 trajectories take longer, and there is "
            "no earlier benchmark of this machine and these settings to tell by"
        )
    runs = f"{num} runs: {', '.join(names)}, {repeats} each"
    return f"{runs}; about {max(1, round(num * of_run_s / 60))} min, {source}"
