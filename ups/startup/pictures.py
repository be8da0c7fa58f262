"""The pictures of a comparison: where the time goes, its trend, what each optimisation is worth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ups.startup import wording
from ups.startup.compare import Comparison, ScenarioSummary, Share
from ups.startup.critical_path import UNACCOUNTED, in_order
from ups.startup.panel import (
    FONT_PT,
    PANEL,
    TEXT,
    add_legend,
    hide_what_does_not_fit,
    make_room,
    set_title,
    sheet_of_rows,
    text_on,
    to_png,
    wrapped,
    write_beside,
)
from ups.startup.trend import trend_figure
from ups.telemetry.gantt import COLOURS

PHASE_COLOURS = {**COLOURS, UNACCOUNTED: "#d7dce2"}
OTHER_PHASE = "#c58fb0"
OTHER = "other"
THIN = 0.005  # of the longest bar: three pixels, of which the edges take one
EFFECT_COLOURS = {
    "saves time": "#4c9be8",
    "costs time": "#e8913a",
    "within the noise": "#8b97a5",
    "one run only": "#c9a227",
}


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
    """A bar per scenario, as long as its median TTFS, cut into the phases that were waited for."""
    names = [wrapped(scenario.name) for scenario in scenarios]
    figure, axes = sheet_of_rows(names)
    longest = max(scenario.ttfs.median for scenario in scenarios)
    waited_s = [{p.phase: p.critical_s for p in s.phases if p.critical_s > 0} for s in scenarios]
    shown = {phase for of in waited_s for phase, s in of.items() if s >= THIN * longest}
    thin = in_order(phase for of in waited_s for phase in of if phase not in shown)
    inside, beside = [], []
    for row, scenario in enumerate(scenarios):
        left = 0.0
        for phase, width in _with_other(waited_s[row], thin).items():
            colour = PHASE_COLOURS.get(phase, OTHER_PHASE)
            axes.barh(row, width, 0.68, left, color=colour, edgecolor=PANEL, linewidth=0.8)
            label = axes.text(
                left + width / 2,
                row,
                wording.figure(width),
                ha="center",
                va="center",
                color=text_on(colour),
                fontsize=FONT_PT,
            )
            inside.append((label, left, left + width))
            left += width
        beside.append(write_beside(axes, left, row, wording.seconds(scenario.ttfs.median)))
    axes.set_xlim(0, longest)
    set_title(axes, "Where the time to first step goes: medians")
    axes.set_xlabel(
        "seconds on the critical path: of each phase only what the first step waited for"
    )
    entries = {phase: PHASE_COLOURS.get(phase, OTHER_PHASE) for phase in in_order(shown)}
    if thin:
        entries[f"{OTHER}: {', '.join(thin)}"] = OTHER_PHASE
    add_legend(figure, [Patch(color=colour, label=label) for label, colour in entries.items()])
    make_room(figure, axes, beside)
    hide_what_does_not_fit(axes, inside)
    return figure


def _with_other(waited_s: Mapping[str, float], thin: Sequence[str]) -> dict[str, float]:
    """phase → seconds, with those that no bar could show in one at the end."""
    told = {phase: s for phase, s in waited_s.items() if phase not in thin}
    rest = math.fsum(s for phase, s in waited_s.items() if phase in thin)
    return {**told, OTHER: rest} if rest else told


def shares_figure(shares: Sequence[Share]) -> Figure:
    """A bar per optimisation: the seconds that a run takes longer without it, with interval."""
    names = [f"{wrapped(share.optimisation)}\nin {wrapped(share.base)}" for share in shares]
    figure, axes = sheet_of_rows(names)
    reach = [share.seconds.value for share in shares]
    labels = []
    for row, share in enumerate(shares):
        value = share.seconds.value
        left = right = value
        axes.barh(row, value, 0.5, color=EFFECT_COLOURS[share.effect])
        if share.effect != "one run only":
            left, right = share.seconds.low, share.seconds.high
            axes.plot((left, right), (row, row), color=TEXT, linewidth=1.5)
            axes.plot((left, right), (row, row), "|", color=TEXT, ms=8, mew=1.5)
            reach += [left, right]
        text = f"{wording.signed(value)} s, {wording.percent(share.percent)}"
        is_left = right < 0
        labels.append(write_beside(axes, left if is_left else max(right, 0), row, text, is_left))
    furthest_left = min(0.0, *reach)
    axes.set_xlim(1.05 * furthest_left, max(1e-3, *reach))
    axes.axvline(0, color=TEXT, linewidth=1)
    set_title(axes, "What each optimisation is worth")
    axes.set_xlabel("seconds that the median time to first step grows by without it")
    met = {share.effect for share in shares}
    whisker = Line2D([], [], color=TEXT, linewidth=1.5, label="95 % interval")
    add_legend(
        figure,
        [
            *(
                Patch(color=c, label=effect)
                for effect, c in EFFECT_COLOURS.items()
                if effect in met
            ),
            *([whisker] if len(reach) > len(shares) else []),
        ],
    )
    make_room(figure, axes, labels)
    return figure
