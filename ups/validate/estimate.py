"""What the startup is going to take: bytes, seconds by phase, dollars."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping
from pathlib import Path

from ups import PROJECT_DIR
from ups.config import RunConfig, load_config
from ups.errors import HistoryError, UpsError
from ups.latents.key import ENCODED_SPLITS
from ups.machine import host
from ups.runs.breakdown import STARTUP_PHASES
from ups.startup.judge.history import History
from ups.startup.measure.records import FOLDER, BenchmarkRecord
from ups.startup.measure.scenarios import BY_NAME, overrides_of
from ups.units import format_size
from ups.validate.cache import Found
from ups.validate.check import Check, Checks
from ups.validate.sources import (
    Sources,
    count_trajectories,
    fetch_bytes,
    latent_bytes,
    planned,
    select,
    total_of,
)

COLD, WARM = "cold", "warm"
NO_BENCHMARK = "no benchmark of this machine yet: run `make benchmark`"
# One after the other; the warm-up runs beside all three that end with the load.
IN_ORDER = ("download", "cache", "load")


def validate_estimate(
    config: RunConfig, sources: Sources, *, entries: Found, folder: Path | None = None
) -> list[Check]:
    """Scale the phases of an earlier benchmark to the bytes of this run.

    Args:
        entries: for each problem, whether its latents are in the cache; those of which that is not
            known are built.
        folder: of the benchmarks; default: the project's.
    """
    checks = Checks("estimate")
    to_fetch = 0 if config.data.is_local else fetch_bytes(sources)
    if to_fetch is None:
        checks.skip("to fetch", "the size of what is to be fetched is not known")
    else:
        text = f"{format_size(to_fetch)} to fetch" if to_fetch else "nothing to fetch"
        checks.ok("to fetch", text, num_bytes=to_fetch)
    folder = PROJECT_DIR / FOLDER if folder is None else folder
    built = [problem.name for problem in config.data.problems if not entries.get(problem.name)]
    scenario = _scenario(config, to_fetch, built)
    try:
        benchmark = _latest(folder, scenario)
        ratios = _ratios(config, sources, to_fetch, built, benchmark, folder)
    except UpsError as error:
        checks.skip("startup", str(error))
        return checks
    if ratios is None:
        checks.skip("startup", "it grows with the data, whose size is not known")
        return checks
    seconds, fixed = _phases(benchmark, scenario), _phases(benchmark, WARM)
    estimated = {
        phase: _scaled(taken, fixed.get(phase, 0.0) if phase != "load" else 0.0, ratios.get(phase))
        for phase, taken in seconds.items()
    }
    ttfs_s, price = _time_to_first_step(estimated), config.startup.price_per_hour
    cost = ttfs_s / 3600 * price
    listed = ", ".join(f"{phase} {taken:.2f}" for phase, taken in estimated.items())
    scaled = ", ".join(
        f"{phase} for × {ratio:.2g}"
        for phase, ratio in ratios.items()
        if estimated.get(phase) != seconds.get(phase)
    )
    checks.ok("seconds", f"{listed}{f' ({scaled})' if scaled else ''}", **estimated)
    num_runs = sum(run.scenario == scenario for run in benchmark.runs)
    checks.ok(
        "startup",
        f"about {ttfs_s:.1f} s to the first step, by {num_runs} `{scenario}` runs of benchmark "
        f"{benchmark.id}, with its object store and its model",
        ttfs_s=ttfs_s,
        scenario=scenario,
        benchmark=benchmark.id,
    )
    checks.ok("cost", f"${cost:.4f} for the startup, at ${price:g} an hour", cost_usd=cost)
    return checks


def _scenario(config: RunConfig, to_fetch: int | None, built: Collection[str]) -> str:
    """The scenario of the benchmark that is like the next run."""
    if config.features.is_legacy:
        return "legacy"
    if config.features.preload == "off":
        return "no-cache"
    if to_fetch != 0:
        return COLD
    return "changed-config" if built else WARM


def _latest(folder: Path, scenario: str) -> BenchmarkRecord:
    """The newest benchmark of this machine that made runs of a scenario.

    Raises:
        HistoryError: there is none, or none with such runs.
    """
    history = History(folder).benchmarks()
    machine_id = host.identity(folder) if history else None
    own = [b for b in history if b.machine_id == machine_id and b.runs]
    if not own:
        raise HistoryError(NO_BENCHMARK)
    alike = [b for b in own if scenario in b.scenarios]
    if not alike:
        raise HistoryError(f"no benchmark of this machine has `{scenario}` runs: `make benchmark`")
    return alike[0]


def _phases(benchmark: BenchmarkRecord, scenario: str) -> dict[str, float]:
    """Median seconds of each phase, in the order of the startup; `unaccounted` last."""
    runs = [run for run in benchmark.runs if run.scenario == scenario]
    present = {phase for run in runs for phase in run.phases}
    order = [phase for phase in (*STARTUP_PHASES, "unaccounted") if phase in present]
    return {p: statistics.median(run.phases.get(p, 0.0) for run in runs) for p in order}


def _ratios(
    config: RunConfig,
    sources: Sources,
    to_fetch: int | None,
    built: Collection[str],
    benchmark: BenchmarkRecord,
    folder: Path,
) -> dict[str, float] | None:
    """How much more the run has to do than the benchmark's had, for the phases that grow with it.

    Download by bytes fetched, cache by field values read, load by bytes of latents.
    """
    settings = benchmark.settings
    overrides = overrides_of(
        BY_NAME[COLD], folder, settings["num_trajectories"], settings["config"]
    )
    theirs = load_config(settings["config"], overrides)
    of_theirs = planned(theirs)
    pairs = {
        "download": (to_fetch, fetch_bytes(of_theirs)),
        "cache": (_values(config, sources, built), _values(theirs, of_theirs)),
        "load": (latent_bytes(config, sources), latent_bytes(theirs, of_theirs)),
    }
    ratios = {}
    for phase, (ours, before) in pairs.items():
        if ours is None or not before:
            return None
        ratios[phase] = ours / before
    if to_fetch == 0:
        del ratios["download"]  # as long as in the benchmark: a look at what is staged
    return ratios


def _values(
    config: RunConfig, sources: Sources, problems: Collection[str] | None = None
) -> int | None:
    """Field values that are read to encode these problems; of none of them those of all."""
    own = select(sources, ENCODED_SPLITS, problems or None)
    counts = [count_trajectories(config, known) for known in own]
    frames = total_of(n and n * known.num_frames for n, known in zip(counts, own, strict=True))
    return None if frames is None else frames * config.encoded_points


def _scaled(seconds: float, fixed_s: float, ratio: float | None) -> float:
    """`fixed_s` of it is what the phase takes when there is nothing to do."""
    fixed_s = min(fixed_s, seconds)
    return seconds if ratio is None else fixed_s + (seconds - fixed_s) * ratio


def _time_to_first_step(seconds: Mapping[str, float]) -> float:
    """The sum, where the warm-up counts as far as it is longer than what goes on beside it."""
    beside = sum(seconds.get(phase, 0.0) for phase in IN_ORDER)
    others = sum(s for phase, s in seconds.items() if phase not in (*IN_ORDER, "warm-up"))
    return others + max(beside, seconds.get("warm-up", 0.0))
