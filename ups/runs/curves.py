"""The picture of a training: loss and val nRMSE, epoch by epoch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullLocator

from ups.runs.look import SMALL_DPI, WIDTH_IN, look, to_png
from ups.runs.metrics import LOSS, VAL, val_of_problems

LOSS_COLOUR, VAL_COLOUR, BEST_COLOUR = "#d9822b", "#6db3f2", "#2e9e5b"
PROBLEM_COLOURS = ("#e8913a", "#c58fb0", "#c8e66b", "#5fb3b3", "#b3694a", "#9aa5b1")
LOG_FROM = 5.0  # times the smallest value: below it, a linear scale has the better labels
PLAIN = (1e-3, 1e5)  # values between them need no exponent
LEGEND_LETTERS, ROW_IN = 96, 0.27  # of a row of the names of problems, below the axes
KEY_LETTERS = 7  # as wide as a line and the space about it
MARKED = 30  # epochs, up to which each is marked


@look(is_laid_out=False)  # it is drawn beside a training, again and again
def draw_curves(epochs: Sequence[Mapping[str, Any]]) -> bytes:
    """Train loss beside val nRMSE, as PNG; what is not finite is left out.

    Args:
        epochs: the rows of `metrics.jsonl`, one at least.
    """
    return to_png(curves_figure(epochs), SMALL_DPI)


def curves_figure(epochs: Sequence[Mapping[str, Any]]) -> Figure:
    """The picture of `draw_curves`; of several problems, a line each and their names below."""
    problems = val_of_problems(epochs[-1])
    longest = max(map(len, ("mean", *problems))) + KEY_LETTERS
    num_columns = max(1, LEGEND_LETTERS // longest)
    num_rows = -(-(len(problems) + 1) // num_columns) if problems else 0
    height = 3.3 + ROW_IN * num_rows
    figure = Figure(figsize=(WIDTH_IN, height))
    bottom = (0.55 + ROW_IN * num_rows) / height
    figure.subplots_adjust(left=0.09, right=0.98, top=1 - 0.4 / height, bottom=bottom, wspace=0.24)
    left, right = figure.subplots(1, 2)
    num = [row["epoch"] for row in epochs]
    losses, errors = ([_number(row.get(name)) for row in epochs] for name in (LOSS, VAL))
    marker = "o" if len(epochs) <= MARKED else ""
    left.plot(num, losses, color=LOSS_COLOUR, marker=marker, markersize=4)
    _dress(left, "train loss", losses)
    drawn = list(errors)
    colours = itertools.cycle(PROBLEM_COLOURS)
    for (problem, name), colour in zip(problems.items(), colours, strict=False):
        of_problem = [_number(row.get(name)) for row in epochs]
        drawn += of_problem
        right.plot(num, of_problem, color=colour, linewidth=1.2, label=problem)
    label = "mean" if problems else None
    right.plot(num, errors, color=VAL_COLOUR, marker=marker, markersize=4, label=label)
    found = [(error, at) for error, at in zip(errors, num, strict=True) if math.isfinite(error)]
    title = "val nRMSE"
    if found:
        error, at = min(found)
        title += f": lowest {error:.4f}, epoch {at}"
        right.plot([at], [error], "D", color=BEST_COLOUR, markersize=7)
    _dress(right, title, drawn)
    if problems:
        figure.legend(loc="lower left", ncols=min(num_columns, len(problems) + 1))
    return figure


def _number(value: float | None) -> float:
    """In the file, null stands for what is not finite."""
    return math.nan if value is None else value


def _dress(axes: Axes, title: str, values: Sequence[float]) -> None:
    axes.set_title(title)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(
        MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)
    )
    positive = [value for value in values if value > 0]
    is_log = bool(positive) and max(positive) > LOG_FROM * min(positive)
    if is_log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
        axes.yaxis.set_minor_locator(NullLocator())
    if not is_log and positive and PLAIN[0] < max(positive) < PLAIN[1]:
        axes.ticklabel_format(axis="y", style="plain", useOffset=False)  # decimals in common
    else:
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))  # no offset above the axis
