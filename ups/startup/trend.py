"""The picture of TTFS over time: a panel per scenario, with what got worse marked."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ups.startup import wording
from ups.startup.compare import TrendPoint
from ups.startup.panel import FONT_PT, TEXT, add_legend, new_sheet, set_title, style, wrapped

POINT, WORSE = "#6db3f2", "#ff7b72"
CROWDED = 20  # more points are drawn smaller
TITLE_LETTERS = 42  # of a line above half the width
MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86400
TIME_STEPS_S = (
    *(1, 2, 5, 10, 15, 30),
    *(n * MINUTE_S for n in (1, 2, 5, 10, 15, 30)),
    *(n * HOUR_S for n in (1, 2, 3, 6, 12)),
    *(n * DAY_S for n in (1, 2, 4, 7, 14, 30, 60, 120, 240, 480, 960)),
)


def trend_figure(points: Sequence[TrendPoint], names: Sequence[str] = ()) -> Figure:
    """A panel per scenario: its TTFS in each benchmark, on one axis of time.

    Args:
        names: the order of the panels; scenarios of the history that it lacks come last.
    """
    of_scenario = {name: [p for p in points if p.scenario == name] for name in names}
    for point in points:
        if point.scenario not in names:
            of_scenario.setdefault(point.scenario, []).append(point)
    shown = [(name, found) for name, found in of_scenario.items() if found]
    num_columns = 1 if len(shown) <= 3 else 2
    num_rows = -(-len(shown) // num_columns)
    figure = new_sheet(1.5 * num_rows + 1.3)
    panels = figure.subplots(num_rows, num_columns, squeeze=False).flat
    for index, (axes, (name, found)) in enumerate(zip(panels, shown, strict=False)):
        style(axes)
        _draw_history(axes, name, found)
        is_lowest = index + num_columns >= len(shown)
        _set_time_axis(axes, [p.at for p in points], num_columns, is_lowest)
    for axes in list(figure.axes)[len(shown) :]:
        axes.remove()
    title = "Seconds to the first step, benchmark by benchmark; times are UTC"
    figure.suptitle(title, x=0.01, ha="left", color=TEXT, fontsize=FONT_PT)
    entries: list[Artist] = [Line2D([], [], color=POINT, marker="o", ls="none", label="median")]
    if any(point.ttfs.num > 1 for point in points):
        entries.append(Line2D([], [], color=POINT, label="smallest to largest", alpha=0.6, lw=2))
    if any(point.worse for point in points):
        label = "worse than its history"
        entries.append(Line2D([], [], color=WORSE, marker="D", ls="none", label=label))
    add_legend(figure, entries)
    return figure


def _draw_history(axes: Axes, name: str, points: Sequence[TrendPoint]) -> None:
    points = sorted(points, key=lambda point: point.at)
    medians = [point.ttfs.median for point in points]
    axes.plot([point.at for point in points], medians, color=POINT, linewidth=1, alpha=0.6)
    small = 5 if len(points) <= CROWDED else 3.5
    for worse, colour, marker, size in ((False, POINT, "o", small), (True, WORSE, "D", 7)):
        found = [point for point in points if point.worse == worse]
        at = [point.at for point in found]
        smallest, largest = [p.ttfs.smallest for p in found], [p.ttfs.largest for p in found]
        axes.vlines(at, smallest, largest, color=colour, linewidth=2, alpha=0.6)
        shown = [point.ttfs.median for point in found]
        axes.plot(at, shown, marker, color=colour, markersize=size)
    axes.set_ylim(0, 1.15 * max(point.ttfs.largest for point in points))
    axes.yaxis.set_major_locator(MaxNLocator(3))
    set_title(axes, wrapped(f"{name}: latest {wording.seconds(medians[-1])}", TITLE_LETTERS))


def _set_time_axis(axes: Axes, times: Sequence[float], num_columns: int, named: bool) -> None:
    """The same stretch of time for every panel, also where it is a single moment."""
    first, last = min(times), max(times)
    span = last - first
    margin = 0.04 * span if span > 0 else HOUR_S / 2
    axes.set_xlim(first - margin, last + margin)
    axes.set_xticks(_moments(sorted(set(times)), 10 // num_columns))
    if 0 < span < 10 * MINUTE_S:
        pattern = "%H:%M:%S\n%d %b"
    else:
        pattern = "%H:%M\n%d %b" if span < 3 * DAY_S else "%d %b\n%Y"
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda at, _: datetime.fromtimestamp(at, UTC).strftime(pattern))
    )
    axes.tick_params(axis="x", labelbottom=named)


def _moments(times: Sequence[float], num: int) -> list[float]:
    """At most `num` round moments from the first to the last; one or two times themselves."""
    if len(times) <= 2:
        return list(times)
    span = times[-1] - times[0]
    step = next((step for step in TIME_STEPS_S if span / step < num), TIME_STEPS_S[-1])
    start = -(-times[0] // step) * step
    return [start + i * step for i in range(int((times[-1] - start) // step) + 1)]
