"""`benchmark-startup`: how long startups take, where the time goes, and whether that got worse."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Annotated

from prefect import flow, runtime
from pydantic import Field

from tasks.benchmark import (
    link,
    make_inputs,
    measure_bounds,
    prepare_scenario,
    publish,
    read_record,
    run_scenario,
)
from ups.config import load_config
from ups.errors import BenchmarkError, RegressionFound
from ups.files import exclusive_lock
from ups.startup import benchmark
from ups.startup.bounds import Rates
from ups.startup.compare import Comparison, compare
from ups.startup.criteria import check
from ups.startup.history import History
from ups.startup.limits import Thresholds
from ups.startup.order import in_turn
from ups.startup.page_cache import PageCache
from ups.startup.records import BenchmarkRecord, RunRecord
from ups.startup.scenarios import BASES, Scenario, choose, overrides_of
from ups.startup.verdict import judge
from ups.startup.wording import headline
from ups.telemetry import machine

log = logging.getLogger("ups.flow")
logging.getLogger("ups").setLevel(logging.INFO)  # its lines go to the run's log in the UI


LOOK_S = 0.5  # at what else the machine does, before each run


def _name() -> str:
    parameters = runtime.flow_run.parameters
    return f"{', '.join(parameters['scenarios'])} × {parameters['repeats']}"


@flow(name="benchmark-startup", flow_run_name=_name)
def benchmark_startup(
    scenarios: list[str] = ["nightly"],  # noqa: B006 (a schema's default, never changed)
    repeats: Annotated[int, Field(ge=1)] = 5,
    num_trajectories: Annotated[int, Field(ge=8)] = 512,
    page_cache: PageCache = "kept",
    thresholds: Thresholds = Thresholds(),  # noqa: B008
    config: str = "benchmark",
    folder: Path = benchmark.FOLDER,
) -> None:
    """Time the startup in controlled scenarios, compare with earlier times, say if it got worse.

    Args:
        scenarios: Sets (nightly, plan, all) or scenarios: legacy, cold, warm, changed-config, and
            no-FEATURE for each optimisation. `all` takes about three times as long as `nightly`.
        repeats: Runs of each scenario, 1 or more; they alternate.
        num_trajectories: Of the training data, 8 or more; generated once and kept in the store.
        page_cache: Before each run: `kept` as the one before left it, or `dropped`.
        thresholds: From when on a change counts.
        config: Name of a config in deployments/configs, or the path of one.
        folder: Where the history, and each scenario's data and cache, are kept.
    """
    chosen = choose(scenarios, has_gpu=machine.gpu_name() is not None)
    folder = folder.resolve()
    history = History(folder / benchmark.HISTORY)
    record = benchmark.new_record(config, num_trajectories, page_cache, folder, _run_id())
    runs = [s.name for s in chosen]
    log.info("%s", benchmark.estimate(record, runs, repeats, history.benchmarks()))
    stop = threading.Event()
    with exclusive_lock(folder / ".lock", stop):
        inputs = load_config(config, overrides_of(chosen[0], folder, num_trajectories, config))
        make_inputs(inputs)
        rates = measure_bounds(inputs, folder, page_cache)
        history.begin(record)
        bench = _Bench(config, num_trajectories, page_cache, folder, rates, stop)
        for repeat in range(1, repeats + 1):
            for scenario in in_turn(chosen, repeat):
                run = bench.run(scenario, repeat)
                history.add_run(record.id, run)
                record = record.model_copy(update={"runs": (*record.runs, run)})
                log.info(
                    "run %d of %d: %s, %.2f s to the first step",
                    len(record.runs),
                    len(chosen) * repeats,
                    scenario.name,
                    run.ttfs_s,
                )
    comparison = _conclude(record, history, thresholds)
    criteria = check(comparison, record.runs)
    publish(comparison, criteria, folder / "reports" / record.id)
    log.info("%s", headline(comparison))
    worse = [verdict.message for verdict in comparison.verdicts if verdict.kind == "worse"]
    if worse:
        raise RegressionFound("; ".join(worse))
    asked = [c for c in criteria if c.source == "plan" and "plan" in scenarios]
    unmet = [f"{c.asks}: {c.measured}, target {c.target}" for c in asked if not c.is_met]
    if unmet:
        raise BenchmarkError("not met: " + "; ".join(unmet))


class _Bench:
    """What all the runs of a benchmark have in common."""

    def __init__(
        self,
        config: str,
        num_trajectories: int,
        page_cache: PageCache,
        folder: Path,
        rates: Rates,
        stop: threading.Event,
    ) -> None:
        self.config, self.num_trajectories = config, num_trajectories
        self.page_cache, self.folder, self.rates, self.stop = page_cache, folder, rates, stop
        self._is_started_as_wanted = True

    def run(self, scenario: Scenario, repeat: int) -> RunRecord:
        """One run that counts.

        A start that came out cold, as the first after a change of the code does, is done again
        once: it would be another scenario.

        Raises:
            BenchmarkError: a run that built the scenario's cache left none that can be used.
        """
        overrides = overrides_of(scenario, self.folder, self.num_trajectories, self.config)
        config = load_config(self.config, overrides)
        if not prepare_scenario(scenario, config, self.page_cache, self.stop):
            log.info("%s: a run that does not count builds its cache", scenario.name)
            run = run_scenario(scenario, f"4 {scenario.name}, uncounted", self.config, overrides)
            if not prepare_scenario(scenario, config, self.page_cache, self.stop):
                raise BenchmarkError(
                    f"{scenario.name}: the run {link(str(run.id))} was to build the cache, and "
                    f"{config.training.latent_cache_dir} has no valid entry of its key after it. "
                    f"See that run's log; removing {self.folder / scenario.name} starts it afresh"
                )
        busy_cores = machine.busy_cores(LOOK_S)
        run = run_scenario(scenario, f"4 {scenario.name} {repeat}", self.config, overrides)
        record = read_record(scenario, repeat, run, config, self.rates, busy_cores)
        wanted = scenario.env.get("UPS_START_MODE", "warm")
        if record.start_mode != wanted and self._is_started_as_wanted:
            self._is_started_as_wanted = False
            log.warning(
                "%s started %s, not %s: done again", scenario.name, record.start_mode, wanted
            )
            return self.run(scenario, repeat)
        return record


def _conclude(record: BenchmarkRecord, history: History, thresholds: Thresholds) -> Comparison:
    names = list(dict.fromkeys(run.scenario for run in record.runs))
    verdicts = [
        judge(
            name,
            record.runs,
            history.benchmarks_before(record, name, thresholds.window),
            thresholds,
        )
        for name in names
    ]
    history.finish(record.id, verdicts)
    trend = [
        point for name in names for point in history.trend(record.machine_id, record.settings, name)
    ]
    return compare(record, BASES, verdicts, trend)


def _run_id() -> str | None:
    found: str | None = runtime.flow_run.id
    return found


if __name__ == "__main__":
    benchmark_startup()
