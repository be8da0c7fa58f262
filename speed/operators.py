"""Our operator, FNO, U-Net and persistence: error for the cost of training, and of a prediction."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from typing import Any

from speed import operator_cost
from speed.harness import Comparison, Result
from speed.operator_picture import draw
from speed.operator_training import (
    CONFIGS,
    NUM,
    NUS,
    PAIRS_FACTOR,
    X_STRIDE,
    Choice,
    Job,
    Trained,
    config_of,
    fields,
    mean_error,
    solve,
    train_and_score,
)
from speed.settings import Settings
from ups.machine.cgroup import num_cores
from ups.machine.host import kind
from ups.startup.measure.scenarios import in_turn

Map = Callable[..., Iterable[Any]]

BUDGETS_S = {"cpu": (5, 10, 20), "cuda": (10, 20, 40)}
SEEDS = 3
LEAST_RATIO = 1.3
PERSISTENCE = "persistence"
OURS = next(iter(CONFIGS))

# What each kind has for itself; `choose` shows it beside others.
CHOSEN = {
    (OURS, 0.01): Choice(8e-3, 20),
    ("FNO", 0.01): Choice(16e-3, 10),
    ("U-Net", 0.01): Choice(4e-3, 10),
    (OURS, 0.001): Choice(4e-3, 10),
    ("FNO", 0.001): Choice(16e-3, 10),
    ("U-Net", 0.001): Choice(4e-3, 10),
}
CHOOSE_AFTER_S = 10
RATES = (2e-3, 4e-3, 8e-3, 16e-3)
PAIRS = {OURS: (10, 20), "FNO": (5, 10), "U-Net": (5, 10)}
SIZES: dict[str, dict[str, Any]] = {  # tried where shocks are narrow
    OURS: {"latent.tokens": 32},
    "FNO": {"operator.modes": 24},
    "U-Net": {"operator.width": 32},
}


def run(settings: Settings) -> Iterator[Comparison]:
    with _processes(settings) as pool:
        prepare(settings, pool.map)
        yield from compare(settings, pool.map)


def prepare(settings: Settings, each: Map) -> None:
    """Solve the trajectories, the most work first; those that are there stay."""
    list(each(partial(_solve, settings), product(NUM["cpu"], sorted(NUS))))


def compare(
    settings: Settings, each: Map, names: Sequence[str] = tuple(CONFIGS), nus: Sequence[float] = NUS
) -> Iterator[Comparison]:
    """Train each for each budget, from each seed, in turn; then time their predictions.

    Args:
        each: like `map`; that of a pool has the trainings run side by side.
    """
    budgets = [settings.size * s for s in BUDGETS_S[settings.device]]
    cells = list(product(nus, budgets))
    jobs = [
        Job(name, nu, CHOSEN[name, nu], budget, seed)
        for seed in range(min(SEEDS, settings.repeats))
        for i, (nu, budget) in enumerate(cells)
        for name in in_turn(names, seed * len(cells) + i + 1)
    ]
    found = list(zip(jobs, _trained(settings, each, jobs), strict=True))
    still = {nu: _persistence(settings, nu) for nu in nus}
    rows: dict[tuple[float, float], Comparison] = {}
    for nu, budget in cells:
        results = [Result(n, "peer" if i else "ours") for i, n in enumerate(names)]
        for result in results:
            cell = (result.name, nu, budget)
            of_cell = [t for job, t in found if (job.name, job.nu, job.budget_s) == cell]
            result.values = [t.error for t in of_cell]
            result.extras = {
                _clock(settings): [t.seconds for t in of_cell],
                "steps": [float(t.num_steps) for t in of_cell],
            }
        results.append(Result(PERSISTENCE, "peer", [still[nu]]))
        phase = f"ν = {nu:g}, {budget:g} {_clock(settings)} of training"
        row = Comparison(
            phase=phase,
            results=results,
            unit="nRMSE",
            targets=dict.fromkeys(names[1:], LEAST_RATIO),
            notes=[*_notes(settings, names), f"{phase}: {_by_means(results)}"],
        )
        rows[nu, budget] = row
        yield row
    costs = {}
    last = {nu: {r.name: _mean(r) for r in rows[nu, budgets[-1]].results[:-1]} for nu in nus}
    tasks = [(nu, {name: CHOSEN[name, nu] for name in names}, last[nu]) for nu in nus]
    for nu, cost in zip(nus, each(partial(_cost, settings), tasks), strict=True):
        costs[nu] = operators, solver = cost
        matched = [operator_cost.as_good(solver, r.name, last[nu][r.name]) for r in operators]
        yield Comparison(f"a prediction, ν = {nu:g}", [*operators, *matched], "ms a trajectory")
        yield Comparison(f"the solver, ν = {nu:g}", solver, "ms a trajectory", notes=COST_NOTES)
    trial = "" if settings.is_default else "-trial"
    picture = settings.results / f"operators-{kind(settings.device)}{trial}.png"
    draw(rows, costs, last, _clock(settings), picture)


def choose(settings: Settings) -> Iterator[Comparison]:
    """Score rates, pairs of a step and sizes of each kind on val; ours of a row is what is used."""
    with _processes(settings) as pool:
        prepare(settings, pool.map)
        yield from choose_from(settings, pool.map)


def choose_from(
    settings: Settings, each: Map, names: Sequence[str] = tuple(CONFIGS), nus: Sequence[float] = NUS
) -> Iterator[Comparison]:
    """See `choose`; `each` is like `map`."""
    budget = settings.size * CHOOSE_AFTER_S
    jobs = [
        Job(name, nu, Choice(lr, pairs, size), budget, split="val")
        for nu in nus
        for name in names
        for size in ({}, SIZES[name])[: 1 + (nu < NUS[0])]
        for lr, pairs in product(RATES, PAIRS[name])
    ]
    trained = list(_trained(settings, each, jobs))
    for (name, nu), chosen in CHOSEN.items():
        results = [
            Result(str(job.choice), "ours" if job.choice == chosen else "peer", [t.error])
            for job, t in zip(jobs, trained, strict=True)
            if (job.name, job.nu) == (name, nu)
        ]
        if results:
            phase = f"{name}, ν = {nu:g}, {budget:g} {_clock(settings)} of training"
            yield Comparison(phase, results, "nRMSE on val")


COST_NOTES = [
    "A prediction: the whole test set at once, from a field to all frames, on one thread; nRMSE "
    "is the mean of the seeds after the longest training. The solver is that of the data, with "
    "ever more internal points, given and giving every fourth point of the grid; its error is "
    "that to its own result at full resolution."
]


def _notes(settings: Settings, names: Sequence[str]) -> list[str]:
    device = settings.device
    num = ", ".join(f"{settings.scaled(n)} {split}" for split, n in NUM[device].items())
    kinds = "; ".join(
        f"{name}: " + ", ".join(f"{CHOSEN[name, nu]} at ν = {nu:g}" for nu in NUS) for name in names
    )
    return [
        f"Error: nRMSE of rollouts from the first frame, mean over the test trajectories and all "
        f"later frames, on every fourth point of the grid; the moving average of the weights. "
        f"Trajectories: {num}, a step of Δt = 0.1.",
        "All have the same trajectories, the same way to draw the pairs of a step (early ones more "
        "often), the same loss (the relative L2 norm of a step), optimizer, schedule and average. "
        f"Each its own: {kinds}"
        + (f" (× {PAIRS_FACTOR[device]} pairs)" if PAIRS_FACTOR[device] > 1 else "")
        + ". Those were chosen on val (`python -m speed operators --sections choice`).",
        f"A training has one thread; {_num_processes(settings)} run side by side, the kinds in "
        "turn. The schedule ends with the budget: the number of steps follows the time that they "
        "take, from some steps just before on; what they took is beside each figure.",
    ]


def _by_means(results: Sequence[Result]) -> str:
    ours, *others = results
    times = [f"{r.name} {_mean(r) / _mean(ours):.2f} times" for r in others]
    return f"by the means of the seeds, ours {_mean(ours):.4f}, {', '.join(times)} that"


def _mean(result: Result) -> float:
    return sum(result.values) / len(result.values)


def _persistence(settings: Settings, nu: float) -> float:
    u_NTX, _ = fields(settings, config_of(settings, OURS, nu, CHOSEN[OURS, nu]), nu, "test")
    u_NTX = u_NTX[..., ::X_STRIDE]
    return mean_error(u_NTX[:, :1].expand_as(u_NTX[:, 1:]), u_NTX)


def _trained(settings: Settings, each: Map, jobs: Sequence[Job]) -> Iterator[Trained]:
    for number, (job, trained) in enumerate(
        zip(jobs, each(partial(train_and_score, settings), jobs), strict=True), 1
    ):
        print(
            f"  {number}/{len(jobs)} {job.name}, ν = {job.nu:g}, seed {job.seed}, {job.choice}: "
            f"{trained.error:.4f} after {trained.seconds:.1f} of {job.budget_s:g} "
            f"{_clock(settings)}, {trained.num_steps} steps, load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
        yield trained


def _cost(settings: Settings, task: tuple[Any, ...]) -> tuple[list[Result], list[Result]]:
    return operator_cost.measure(settings, *task)


def _solve(settings: Settings, job: tuple[Any, float]) -> None:
    split, nu = job
    solve(settings, nu, split)


def _clock(settings: Settings) -> str:
    return "CPU s" if settings.device == "cpu" else "s"


def _num_processes(settings: Settings) -> int:
    return num_cores() if settings.device == "cpu" else 1


def _processes(settings: Settings) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(_num_processes(settings), mp_context=context)
