"""The picture of a training: loss and val nRMSE, epoch by epoch."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullLocator

from ups.runs.gantt import FONT_PT
from ups.runs.metrics import LOSS, VAL, val_of_problems

LOSS_COLOUR, VAL_COLOUR, BEST_COLOUR = "#d9822b", "#3b82c4", "#2e9e5b"
LOG_FROM = 5.0  # times the smallest value: below it, a linear scale has the better labels
MARKED = 30  # epochs, up to which each is marked


def draw_curves(epochs: Sequence[Mapping[str, Any]]) -> bytes:
    """Train loss beside val nRMSE, as PNG; what is not finite is left out.

    Args:
        epochs: the rows of `metrics.jsonl`, one at least.
    """
    figure = Figure(figsize=(9, 3.3))
    figure.subplots_adjust(left=0.09, right=0.98, top=0.9, bottom=0.16, wspace=0.24)
    left, right = figure.subplots(1, 2)
    num = [row["epoch"] for row in epochs]
    losses, errors = ([_number(row.get(name)) for row in epochs] for name in (LOSS, VAL))
    marker = "o" if len(epochs) <= MARKED else ""
    left.plot(num, losses, color=LOSS_COLOUR, marker=marker, markersize=4)
    _dress(left, "train loss", losses)
    problems = val_of_problems(epochs[-1])
    drawn = list(errors)
    for problem, name in problems.items():
        of_problem = [_number(row.get(name)) for row in epochs]
        drawn += of_problem
        right.plot(num, of_problem, linewidth=0.9, alpha=0.8, label=problem)
    label = "mean" if problems else None
    right.plot(num, errors, color=VAL_COLOUR, marker=marker, markersize=4, label=label)
    _dress(right, "val nRMSE, full rollout", drawn)
    found = [(error, at) for error, at in zip(errors, num, strict=True) if math.isfinite(error)]
    if found:
        error, at = min(found)
        name = f"lowest: {error:.4f}, epoch {at}"
        right.plot([at], [error], "D", color=BEST_COLOUR, markersize=7, label=name)
    if found or problems:
        right.legend(loc="upper right", fontsize=FONT_PT - 1, framealpha=0.8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _number(value: float | None) -> float:
    """In the file, null stands for what is not finite."""
    return math.nan if value is None else value


def _dress(axes: Axes, title: str, values: Sequence[float]) -> None:
    axes.set_title(title, fontsize=FONT_PT + 1)
    axes.set_xlabel("epoch", fontsize=FONT_PT)
    axes.xaxis.set_major_locator(
        MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)
    )
    positive = [value for value in values if value > 0]
    if positive and max(positive) > LOG_FROM * min(positive):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))  # no offset above the axis
    axes.tick_params(labelsize=FONT_PT)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
