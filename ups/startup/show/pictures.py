"""The pictures of a comparison: where the time goes, its trend, what each optimisation is worth."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from datetime import UTC
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ups.runs.breakdown import IDLE
from ups.runs.critical_path import UNACCOUNTED, in_order
from ups.runs.gantt import COLOURS
from ups.runs.look import TEXT, WIDTH_IN, look, to_png
from ups.startup.judge.compare import Comparison, ScenarioSummary, Share, TrendPoint
from ups.startup.show import wording

NAME_LETTERS, TITLE_LETTERS = 24, 42  # of a line of a scenario's name, and of a panel's title
LETTER_SHARE = 0.0165  # width of a letter, as a share of the longest bar; with a margin
LEGEND_COLUMNS, LEGEND_LETTERS = 5, 32
THIN_BAR = 0.14  # of a row

PHASE_COLOURS = {**COLOURS, UNACCOUNTED: "#d7dce2"}
OTHER, OTHER_PHASE = "other", "#c58fb0"
THIN = 0.005  # of the longest bar: three pixels, of which the edges take one
EFFECT_COLOURS = {
    "saves time": "#4c9be8",
    "costs time": "#e8913a",
    "within the noise": "#8b97a5",
    "one run only": "#c9a227",
}
POINT, WORSE, IDLE_COLOUR = "#6db3f2", "#ff7b72", "#c8e66b"
MARKS = (("median, smallest to largest", "o", POINT), ("worse than its history", "D", WORSE))
DAY_S = 86_400  # matplotlib's dates are days since 1970
POINT_SIZES = ((20, 5.0), (100, 3.5), (math.inf, 2.0))  # up to so many benchmarks


@look()
def draw(comparison: Comparison) -> dict[str, bytes]:
    """name → PNG of `phases`, `trend` and `shares`, without those that have nothing to show."""
    figures = {}
    if comparison.scenarios:
        figures["phases"] = phases_figure(comparison.scenarios)
    if len({point.at for point in comparison.trend}) > 1:
        names = [scenario.name for scenario in comparison.scenarios]
        figures["trend"] = trend_figure(comparison.trend, names)
    if comparison.shares:
        figures["shares"] = shares_figure(comparison.shares)
    return {name: to_png(figure) for name, figure in figures.items()}


def phases_figure(scenarios: Sequence[ScenarioSummary]) -> Figure:
    """A bar per scenario, as long as its median TTFS, cut into the phases that were waited for.

    Below it a thin one of its idle seconds.
    """
    idle_s = [(s.idle.median, row) for row, s in enumerate(scenarios) if s.idle is not None]
    longest = max([*(s.ttfs.median for s in scenarios), *(seconds for seconds, _ in idle_s)])
    waited_s = [{p.phase: p.critical_s for p in s.phases if p.critical_s > 0} for s in scenarios]
    phases = in_order(phase for of in waited_s for phase in of)
    shown = [p for p in phases if max(of.get(p, 0.0) for of in waited_s) >= THIN * longest]
    thin = [phase for phase in phases if phase not in shown]
    figure, axes = _new_rows([scenario.name for scenario in scenarios])
    ends = [0.0] * len(scenarios)
    for together in [[phase] for phase in shown] + ([thin] if thin else []):
        label = f"{OTHER}: {', '.join(thin)}" if together is thin else together[0]
        colour = PHASE_COLOURS.get(label, OTHER_PHASE)
        widths = [math.fsum(of.get(phase, 0.0) for phase in together) for of in waited_s]
        bars = axes.barh(range(len(ends)), widths, 0.68, ends, color=colour, label=label)
        texts = [(wording.figure(width), width) for width in widths]
        fitting = [t if width > LETTER_SHARE * longest * len(t) else "" for t, width in texts]
        axes.bar_label(bars, fitting, label_type="center", color="black")
        ends = [end + width for end, width in zip(ends, widths, strict=True)]
    _add_idle(axes, idle_s, 0.68, IDLE)
    totals = [wording.seconds(scenario.ttfs.median) for scenario in scenarios]
    axes.bar_label(bars, totals, padding=6, annotation_clip=False)
    axes.set_xlim(0, longest)
    axes.set_title("Where the time to first step goes: medians")
    axes.set_xlabel(
        "seconds on the critical path: of each phase only what the first step waited for"
    )
    _add_legend(figure)
    return figure


def shares_figure(shares: Sequence[Share]) -> Figure:
    """A bar per optimisation: the seconds that a run takes longer without it, with interval."""
    figure, axes = _new_rows([f"{share.optimisation}\nin {share.base}" for share in shares])
    for effect, colour in EFFECT_COLOURS.items():
        rows = [row for row, share in enumerate(shares) if share.effect == effect]
        if rows:
            widths = [shares[row].seconds.value for row in rows]
            axes.barh(rows, widths, 0.5, color=colour, label=effect)
    known = [(i, s.seconds) for i, s in enumerate(shares) if not math.isnan(s.seconds.low)]
    if known:
        axes.errorbar(
            [(seconds.low + seconds.high) / 2 for _, seconds in known],
            [row for row, _ in known],
            xerr=[(seconds.high - seconds.low) / 2 for _, seconds in known],
            fmt="none",
            ecolor=TEXT,
            capsize=4,
            label="95 % interval",
        )
    grown_s = [(s.idle.value, row) for row, s in enumerate(shares) if s.idle is not None]
    _add_idle(axes, grown_s, 0.5, f"of {IDLE}")
    axes.axvline(0, color=TEXT, linewidth=1)
    values = axes.secondary_yaxis("right")
    values.spines[:].set_visible(False)
    values.set_yticks(
        range(len(shares)),
        [f"{wording.signed(s.seconds.value)} s, {wording.percent(s.percent)}" for s in shares],
    )
    axes.set_title("What each optimisation is worth")
    axes.set_xlabel("seconds that the median time to first step grows by without it")
    _add_legend(figure)
    return figure


def _add_idle(axes: Axes, found: Sequence[tuple[float, int]], height: float, label: str) -> None:
    """A thin bar for each (seconds, row), below the row's bar of that height."""
    if found:
        seconds, rows = zip(*found, strict=True)
        places = [row + (height + THIN_BAR) / 2 for row in rows]
        axes.barh(places, seconds, THIN_BAR, color=IDLE_COLOUR, label=label)


def trend_figure(points: Sequence[TrendPoint], names: Sequence[str] = ()) -> Figure:
    """A panel per scenario: its TTFS and idle seconds in each benchmark, on one axis of time.

    Args:
        names: the order of the panels; scenarios of the history that it lacks come last.
    """
    found = dict.fromkeys(point.scenario for point in points)
    names = [name for name in dict.fromkeys((*names, *found)) if name in found]
    num_columns = 1 if len(names) <= 3 else 2
    num_rows = -(-len(names) // num_columns)
    figure = Figure(figsize=(WIDTH_IN, 1.5 * num_rows + 1.3))
    panels = figure.subplots(num_rows, num_columns, sharex=True, squeeze=False).flatten()
    for axes, name in zip(panels, names, strict=False):
        _draw_history(axes, name, [point for point in points if point.scenario == name])
    for axes in panels[len(names) :]:
        axes.remove()
    for axes in panels[len(names) - num_columns : len(names)]:
        axes.tick_params(axis="x", labelbottom=True)
    if len({point.at for point in points}) == 1:  # half an hour to either side
        axes.set_xlim(points[0].at / DAY_S - 1 / 48, points[0].at / DAY_S + 1 / 48)
    # Fewer ticks at most, for as many at least, and some spans would have no interval that fits.
    fewest, most = (4, 10) if num_columns == 1 else (3, 8)
    locator = AutoDateLocator(UTC, fewest, most)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, UTC))
    title = "Seconds to the first step, benchmark by benchmark; times are UTC"
    figure.suptitle(title, x=0.01, ha="left")
    _add_legend(figure)
    return figure


def _draw_history(axes: Axes, name: str, points: Sequence[TrendPoint]) -> None:
    """The medians as points on a line, TTFS with its spread; those that were worse stand out."""
    size = next(size for most, size in POINT_SIZES if len(points) <= most)
    times = [point.at / DAY_S for point in points]
    medians = [point.ttfs.median for point in points]
    axes.plot(times, medians, color=POINT, linewidth=1, alpha=0.6)
    for is_worse, (label, marker, colour) in enumerate(MARKS):
        found = [i for i, point in enumerate(points) if point.worse == is_worse]
        at, middle = [times[i] for i in found], [medians[i] for i in found]
        # One broken line: matplotlib's error bars are an object each, of years 70 ms in all.
        ends = [(points[i].ttfs.smallest, points[i].ttfs.largest, math.nan) for i in found]
        if found:
            style: dict[str, Any] = {"color": colour, "zorder": 2 + is_worse}
            as_bars: dict[str, Any] = {"linewidth": 1.5, "alpha": 0.6, "solid_capstyle": "butt"}
            axes.plot(np.repeat(at, 3), np.ravel(ends), **style, **as_bars)
            markersize = size + 2 * is_worse
            axes.plot(at, middle, marker, label=label, markersize=markersize, **style)
    _draw_idle(axes, points, size)
    highest_s = max(max(point.ttfs.largest, point.idle_s or 0.0) for point in points)
    axes.set_ylim(0, 1.15 * highest_s)
    axes.yaxis.set_major_locator(MaxNLocator(3))
    title = f"{name}: latest {wording.seconds(medians[-1])}"
    if points[-1].idle_s is not None:
        title += f", idle {wording.seconds(points[-1].idle_s)}"
    axes.set_title(textwrap.fill(title, TITLE_LETTERS))


def _draw_idle(axes: Axes, points: Sequence[TrendPoint], size: float) -> None:
    """Idle seconds where they are known: a thin broken line, those that were worse marked alike."""
    known = [(p.at / DAY_S, p.idle_s, p.idle_worse) for p in points if p.idle_s is not None]
    if known:
        times, seconds, _ = zip(*known, strict=True)
        axes.plot(
            times,
            seconds,
            "s:",
            color=IDLE_COLOUR,
            linewidth=1,
            markersize=0.6 * size,
            zorder=1.5,
            label=f"{IDLE}: median",
        )
    if worse := [(at, idle_s) for at, idle_s, is_worse in known if is_worse]:
        label, marker, colour = MARKS[1]
        times, seconds = zip(*worse, strict=True)
        axes.plot(times, seconds, marker, color=colour, markersize=size + 2, zorder=3, label=label)


def _new_rows(names: Sequence[str]) -> tuple[Figure, Axes]:
    """A figure with a row per name, each as high as the name with the most lines needs it."""
    names = [
        "\n".join(textwrap.fill(line, NAME_LETTERS) for line in name.split("\n")) for name in names
    ]
    num_lines = max(name.count("\n") + 1 for name in names)
    figure = Figure(figsize=(WIDTH_IN, len(names) * max(0.42, 0.2 * num_lines + 0.14) + 1.7))
    axes = figure.add_subplot()
    axes.grid(axis="y", visible=False)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    return figure, axes


def _add_legend(figure: Figure) -> None:
    """Below everything, each label once, rows read from left to right."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    num = LEGEND_COLUMNS
    by_column = [label for column in range(num) for label in [*found][column::num]]
    figure.legend(
        [found[label] for label in by_column],
        [textwrap.fill(label, LEGEND_LETTERS) for label in by_column],
        loc="outside lower left",
        ncols=num,
    )
