"""Made-up histories of benchmarks: nights with noise, steps and drifts."""

import numpy as np
from hypothesis import strategies as st

from ups.startup.judge.limits import Thresholds
from ups.startup.judge.verdict import judge
from ups.startup.measure.records import RunRecord

DEFAULTS = Thresholds()
PHASES = {"boot": 1.0, "download": 1.2, "first step": 1.8, "unaccounted": 0.1}  # of 4.1 s
NIGHT_S = 86_400.0
# Seconds of each phase and the sigma of its runs. Queue, boot and what a warm run has are those of
# 18 warm runs in a row and 5 on an idle machine (two shared cores). Cold runs were measured beside
# other work only (download 1.2 and 0.22 s); their sigmas here add up to 0.15 s, where five runs on
# an idle machine (docs/benchmark.md) spread by 0.09.
START = {"queue": (0.45, 0.08), "boot": (0.50, 0.05)}
WARM_UP = {"warm-up": (0.11, 0.06)}
MEASURED = {
    "legacy": START
    | {"download": (0.80, 0.09), "cache": (0.90, 0.10), "first step": (0.15, 0.03)}
    | {"unaccounted": (0.12, 0.03)},
    "cold": START
    | WARM_UP
    | {"download": (0.75, 0.09), "cache": (0.20, 0.05), "load": (0.40, 0.09)}
    | {"first rows": (0.03, 0.02), "first step": (0.15, 0.05)},
    "warm": START
    | WARM_UP
    | {"download": (0.14, 0.035), "validate": (0.03, 0.01), "first step": (0.035, 0.01)}
    | {"unaccounted": (0.07, 0.02)},
    "changed-config": START
    | WARM_UP
    | {"download": (0.14, 0.035), "cache": (0.15, 0.04), "load": (0.15, 0.05)}
    | {"first step": (0.10, 0.04), "unaccounted": (0.06, 0.02)},
}
BETWEEN = 0.03  # from night to night: twice two benchmarks in a row lay 3 to 10 % apart
POLLED_LATE, LATE_S = 0.02, 2.0  # of the runs, queued by as much more
seeds = st.integers(0, 2**32 - 1)


def run_of(night=0, repeat=0, *, scenario="cold", extra=None, factor=1.0):
    """A run whose TTFS is the sum of its phases."""
    seconds = dict(PHASES)
    for name, more_s in (extra or {}).items():
        seconds[name] = seconds.get(name, 0.0) + more_s
    return RunRecord(
        scenario=scenario,
        repeat=repeat,
        flow_run_id=f"{night}-{repeat}",
        triggered_at=night * NIGHT_S + 60 * repeat,
        ttfs_s=factor * sum(seconds.values()),
        phases={name: factor * of_phase_s for name, of_phase_s in seconds.items()},
    )


def scaled(run, factor):
    phases = {name: factor * seconds for name, seconds in run.phases.items()}
    return run.model_copy(update={"ttfs_s": factor * run.ttfs_s, "phases": phases})


def longer(run, seconds, **phases):
    phases = {**run.phases, **phases}
    return run.model_copy(update={"ttfs_s": run.ttfs_s + seconds, "phases": phases})


def nights(num, *, seed=0, noise=0.02, between=None, repeats=5, first=0, change=lambda night: None):
    """`num` benchmarks, each a list of runs.

    They vary by `between` from one to the next, and by `noise` within one; `between` is `noise`
    where it is not given.
    """
    factors = drawn_factors(num, np.random.default_rng(seed), noise, between, repeats)
    return [
        [run_of(night, n, extra=change(night), factor=f) for n, f in enumerate(of_night)]
        for night, of_night in enumerate(factors, start=first)
    ]


def drawn_factors(num, rng, noise, between=None, repeats=5):
    """Of `num` benchmarks what each run takes, as a multiple of what it takes in the mean."""
    factors = []
    for _ in range(num):
        of_night = 1 + (noise if between is None else between) * rng.standard_normal()
        factors.append(
            [max(of_night + noise * rng.standard_normal(), 0.05) for _ in range(repeats)]
        )
    return factors


def measured_night(scenario, rng, night=0, repeats=5, slower=None):
    """Runs of one night: heavy tails (Student's t of 5), a factor of the night, a late poll."""
    phases = MEASURED[scenario]
    factor = 1 + BETWEEN * (rng.standard_normal() + rng.standard_normal(len(phases))) / 2**0.5
    mean_s, sigma_s = np.array(list(phases.values())).T
    noise = rng.standard_t(5, (repeats, len(phases))) * (3 / 5) ** 0.5
    seconds = np.maximum(factor * mean_s + sigma_s * noise, 0.001)
    names = list(phases)
    seconds[:, 0] += LATE_S * (rng.random(repeats) < POLLED_LATE)
    for name, more_s in (slower or {}).items():
        seconds[:, names.index(name)] += more_s
    start = run_of(night, scenario=scenario)
    return [  # copies, as thousands would take long to validate
        start.model_copy(
            update={"ttfs_s": sum(of_run), "phases": dict(zip(names, of_run, strict=True))}
        )
        for of_run in seconds.tolist()
    ]


def with_waits(benchmarks, waited_s, *, seed=0, noise=0.02, between=None, factor_of_last=1.0):
    """The same runs, which waited for rows as well: idle as long as TTFS and these waits.

    The waits vary by a noise of their own, which TTFS knows nothing of.
    """
    rng = np.random.default_rng([seed, 1])
    factors = drawn_factors(len(benchmarks), rng, noise, between, len(benchmarks[0]))
    factors[-1] = [factor_of_last * factor for factor in factors[-1]]
    return [
        [
            run.model_copy(update={"idle_s": run.ttfs_s + f * waited_s, "waited_s": f * waited_s})
            for run, f in zip(runs, of_night, strict=True)
        ]
        for runs, of_night in zip(benchmarks, factors, strict=True)
    ]


def verdict_of(benchmarks, thresholds=DEFAULTS, figure="TTFS"):
    """Of the last benchmark, against those before."""
    return judge("cold", benchmarks[-1], benchmarks[:-1], thresholds, figure)


def slower_download(seconds, since):
    return lambda night: {"download": seconds if night >= since else 0.0}
