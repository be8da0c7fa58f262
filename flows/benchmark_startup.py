"""`benchmark-startup`: how long startups take, where the time goes, and whether that got worse."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
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
from ups.machine import host
from ups.machine.page_cache import PageCache
from ups.runs.breakdown import IDLE
from ups.startup.judge.compare import compare
from ups.startup.judge.history import History
from ups.startup.judge.limits import Thresholds
from ups.startup.judge.verdict import judge_benchmark
from ups.startup.measure.bounds import Rates
from ups.startup.measure.records import (
    FOLDER,
    BenchmarkRecord,
    RunRecord,
    estimate_duration,
    new_record,
)
from ups.startup.measure.scenarios import KnownName, Scenario, choose, in_turn, overrides_of
from ups.startup.show.wording import headline, seconds

log = logging.getLogger("ups.flow")
logging.getLogger("ups").setLevel(logging.INFO)  # its lines go to the run's log in the UI


LOOK_S = 0.5  # at what else the machine does, before each run


def _name() -> str:
    parameters = runtime.flow_run.parameters
    return f"{', '.join(parameters['scenarios'])} × {parameters['repeats']}"


@flow(name="benchmark-startup", flow_run_name=_name)
def benchmark_startup(
    scenarios: list[KnownName] = ["nightly"],  # noqa: B006 (a schema's default, never changed)
    repeats: Annotated[int, Field(ge=1)] = 5,
    num_trajectories: Annotated[int, Field(ge=8)] = 512,
    page_cache: PageCache = "kept",
    thresholds: Thresholds = Thresholds(),  # noqa: B008
    config: str = "benchmark",
    folder: Path = FOLDER,
) -> None:
    """Time the startup in controlled scenarios, compare with earlier times, say if it got worse.

    Args:
        scenarios: Sets (nightly, plan, all) or scenarios: legacy, cold, warm, changed-config, and
            no-FEATURE for each optimisation. `all` takes about three times as long as `nightly`.
        repeats: Runs of each scenario, 1 or more; they alternate. As many again of a scenario that
            got worse, before it counts as worse.
        num_trajectories: Of the training data, 8 or more; generated once and kept in the store.
        page_cache: Before each run: `kept` as the one before left it, or `dropped`.
        thresholds: From when on a change counts.
        config: Name of a config in deployments/configs, or the path of one.
        folder: Where the history, and each scenario's data and cache, are kept.
    """
    chosen = choose(scenarios, has_gpu=host.gpu_name() is not None)
    names = [scenario.name for scenario in chosen]
    folder = folder.resolve()
    history = History(folder)
    run_id: str | None = runtime.flow_run.id
    record = new_record(config, num_trajectories, page_cache, folder, run_id)
    log.info("%s", estimate_duration(record, names, repeats, history.benchmarks()))
    stop = threading.Event()
    with exclusive_lock(folder / ".lock", stop):
        inputs = load_config(config, overrides_of(chosen[0], folder, num_trajectories, config))
        make_inputs(inputs)
        rates = measure_bounds(inputs, folder, page_cache)
        history.save(record)
        bench = _Bench(config, num_trajectories, page_cache, folder, rates, stop)
        record = bench.rounds(record, chosen, range(1, repeats + 1), history)
        verdicts = judge_benchmark(record, history.benchmarks(), thresholds)
        suspects = {verdict.scenario for verdict in verdicts if verdict.kind == "worse"}
        if suspects:  # what is worse by chance seldom is so twice, and what is by a fault, always
            log.info("%s: worse, and so measured as often again", ", ".join(sorted(suspects)))
            again = [scenario for scenario in chosen if scenario.name in suspects]
            record = bench.rounds(record, again, range(repeats + 1, 2 * repeats + 1), history)
            verdicts = judge_benchmark(record, history.benchmarks(), thresholds)
    comparison = compare(history.save(record, verdicts), history.benchmarks())
    publish(comparison, folder / "reports" / record.id)
    log.info("%s", headline(comparison))
    worse = [verdict.message for verdict in verdicts if verdict.kind == "worse"]
    if worse:
        raise RegressionFound("; ".join(worse))
    asked = [c for c in comparison.criteria if c.source == "plan" and "plan" in scenarios]
    unmet = [f"{c.asks}: {c.measured}, target {c.target}" for c in asked if not c.is_met]
    if unmet:
        raise BenchmarkError("not met: " + "; ".join(unmet))


@dataclass
class _Bench:
    """What all the runs of a benchmark have in common."""

    config: str
    num_trajectories: int
    page_cache: PageCache
    folder: Path
    rates: Rates
    stop: threading.Event
    may_repeat: bool = field(default=True, init=False)

    def rounds(
        self,
        record: BenchmarkRecord,
        scenarios: Sequence[Scenario],
        repeats: range,
        history: History,
    ) -> BenchmarkRecord:
        """The record with the runs of these rounds, which is saved after each of them."""
        num_runs = len(record.runs) + len(scenarios) * len(repeats)
        for repeat in repeats:
            for scenario in in_turn(scenarios, repeat):
                run = self.run(scenario, repeat)
                record = record.model_copy(update={"runs": (*record.runs, run)})
                history.save(record)
                log.info(
                    "run %d of %d: %s, %.2f s to the first step, %s %s",
                    len(record.runs),
                    num_runs,
                    scenario.name,
                    run.ttfs_s,
                    seconds(run.idle_s),
                    IDLE,
                )
        return record

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
        busy_cores = host.busy_cores(LOOK_S)
        run = run_scenario(scenario, f"4 {scenario.name} {repeat}", self.config, overrides)
        record = read_record(scenario, repeat, run, config, self.rates, busy_cores)
        wanted = scenario.env.get("UPS_START_MODE", "warm")
        if record.start_mode != wanted and self.may_repeat:
            self.may_repeat = False
            log.warning(
                "%s started %s, not %s: done again", scenario.name, record.start_mode, wanted
            )
            return self.run(scenario, repeat)
        return record
