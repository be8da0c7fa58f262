"""The picture of the comparison: error against what training costs, and what a prediction costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator, StrMethodFormatter

from speed.harness import Comparison, Result

COLOURS = {
    "latent CNN": "#c0392b",
    "FNO": "#1f5fa8",
    "U-Net": "#2e8b57",
    "persistence": "#777777",
    "solver": "#333333",
}
LABEL_APART = 1.13  # the least ratio of the places of two labels


def draw(
    rows: Mapping[tuple[float, float], Comparison],
    costs: Mapping[float, tuple[Sequence[Result], Sequence[Result]]],
    errors: Mapping[float, Mapping[str, float]],
    clock: str,
    path: Path,
) -> None:
    """A column for each ν; above the cost of training, below that of a prediction.

    Args:
        rows: (ν, budget) → the errors, the last of them persistence's.
        costs: ν → the operators' and the solver's, as `operator_cost.measure` gives them.
        errors: ν → operator → nRMSE after the longest training.
    """
    from matplotlib.figure import Figure

    nus, budgets = list(costs), sorted({budget for _, budget in rows})
    figure = Figure(figsize=(10, 8), layout="constrained")
    panels = figure.subplots(2, len(nus), sharex="row", sharey="col", squeeze=False)
    for nu, (above, below) in zip(nus, panels.T, strict=True):
        _trainings(above, budgets, [rows[nu, budget].results for budget in budgets])
        _predictions(below, *costs[nu], errors[nu])
        above.set_title(f"ν = {nu:g}")
        above.set_xlabel(f"{clock} of training")
        below.set_xlabel("ms a trajectory that is predicted, on one thread")
        for panel in (above, below):
            panel.set_yscale("log")
            panel.margins(y=0.1)  # room for what is written below the lowest point
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            panel.minorticks_off()
            panel.grid(alpha=0.3, linewidth=0.6)
            panel.spines[["top", "right"]].set_visible(False)
            panel.tick_params(labelleft=True)
    for row in panels:
        row[0].set_ylabel("rollout nRMSE")
    seeds = max(len(result.values) for row in rows.values() for result in row.results)
    figure.suptitle(
        f"Error against the cost of training (median, least and most of {seeds} seeds),\n"
        f"and against that of a prediction (mean of the seeds, after {budgets[-1]:g} {clock})"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _trainings(panel: Any, budgets: Sequence[float], by_budget: Sequence[Sequence[Result]]) -> None:
    """Median, least and most of the seeds, against the budget."""
    labels = []
    for results in zip(*by_budget, strict=True):
        name, values = results[0].name, np.array([r.values for r in results])
        middle, colour = np.median(values, 1), COLOURS[name]
        label, last = f"{name} {middle[-1]:.3f}", middle[-1]
        if name == "persistence":
            panel.axhline(last, color=colour, linestyle="--", linewidth=1.2)
            panel.text(budgets[-1] * 2.1, last * 1.04, label, color=colour, ha="right", va="bottom")
            continue
        spread = [middle - values.min(1), values.max(1) - middle]
        panel.errorbar(budgets, middle, spread, color=colour, marker="o", capsize=4)
        labels.append((last, label, colour))
    panel.set_xscale("log")
    panel.set_xticks(budgets, [f"{budget:g}" for budget in budgets])
    panel.set_xlim(budgets[0] / 1.2, budgets[-1] * 2.2)
    lowest = 0.0
    for error, label, colour in sorted(labels):
        lowest = max(error, lowest * LABEL_APART)
        panel.text(budgets[-1] * 1.08, lowest, label, color=colour, va="center")


def _predictions(
    panel: Any, operators: Sequence[Result], solver: Sequence[Result], errors: Mapping[str, float]
) -> None:
    """The solver's error against its time, and the operators in its midst."""
    panel.plot(
        [_ms(r) for r in solver],
        [r.extras["nRMSE"][0] for r in solver],
        color=COLOURS["solver"],
        marker=".",
        linewidth=1.2,
    )
    for result in solver:
        points, place = result.name.split()[0], (_ms(result), result.extras["nRMSE"][0])
        beside = {"xytext": (-4, -4), "ha": "right", "va": "top", "fontsize": 8}
        panel.annotate(points, place, textcoords="offset points", color="#777777", **beside)
    first = (_ms(solver[0]), solver[0].extras["nRMSE"][0])
    label, offset = "our solver, with so many points", (4, 6)
    panel.annotate(label, first, offset, textcoords="offset points", color=COLOURS["solver"])
    for result in operators:
        place, colour = (_ms(result), errors[result.name]), COLOURS[result.name]
        panel.plot(*place, color=colour, marker="o", markersize=8)
        above = {"xytext": (9, 9), "ha": "center", "color": colour, "fontsize": 9}
        panel.annotate(result.name, place, textcoords="offset points", **above)
    panel.set_xscale("log")
    panel.margins(x=0.2)
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _ms(result: Result) -> float:
    return float(np.median(result.values))
