"""The Gantt picture of a run's startup."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ups.runs.breakdown import Span
from ups.runs.look import FONT_PT, PANEL, SMALL_DPI, WIDTH_IN, look, to_png

COLOURS = {
    "queue": "#9aa5b1",
    "boot": "#6b7785",
    "validate": "#4f8a8b",
    "download": "#3b82c4",
    "warm-up": "#8e6bbf",
    "cache": "#d9822b",
    "load": "#c9a227",
    "first rows": "#5fb3b3",
    "first step": "#2e9e5b",
    "train": "#a8d8b9",
    "evaluate": "#cfd8dc",
    "provision/clone": "#b0a08e",
    "provision/install": "#8d7966",
    "provision/worker": "#b3694a",
    "provision/deploy": "#a89a3c",
}
TAIL_SHARE = 0.06  # what is drawn after the end, as a share of the startup
GOES_ON = " →"  # behind the seconds of a bar that is cut
STEP_COLOUR, END_COLOUR = "#2e9e5b", "#ff7b72"
LABEL_SHARE = 0.2  # room for the labels of the last bars, as a share of the startup
BEHIND_LABEL = {"facecolor": PANEL, "edgecolor": "none", "alpha": 0.8, "pad": 0.5}


@look()
def draw_gantt(
    spans: Sequence[Span], start: float, end: float, provision: Sequence[Span] = ()
) -> bytes:
    """A bar per span from the trigger to a little after the first step, as PNG.

    Args:
        start, end: of the startup, Unix times in seconds; what goes on after it, such as the
            training, is cut there, with an arrow behind its seconds.
        provision: what the machine did before the trigger; above, on a scale of its own.
    """
    return to_png(gantt_figure(spans, start, end, provision), SMALL_DPI)


def gantt_figure(
    spans: Sequence[Span], start: float, end: float, provision: Sequence[Span] = ()
) -> Figure:
    """The picture of `draw_gantt`."""
    shown = sorted((s for s in spans if s.start <= end), key=lambda s: (s.start, s.end))
    total = max(end - start, 1e-3)
    rows = [len(provision), len(shown)] if provision else [len(shown)]
    size = (WIDTH_IN, 0.36 * sum(rows) + 0.9 * len(rows) + 0.3)
    figure = Figure(figsize=size)
    *above, axes = figure.subplots(len(rows), squeeze=False, height_ratios=rows)[:, 0]
    for upper in above:
        before_s = max(span.end for span in provision) - provision[0].start
        _draw_bars(upper, provision, provision[0].start, before_s)
        upper.set_xlabel(
            f"seconds since the machine began: {before_s:.1f} s before the trigger, "
            "not in the time to the first step",
            fontsize=FONT_PT - 1,
        )
    _draw_bars(axes, shown, start, total)
    stepped = any(span.phase == "first step" for span in shown)
    colour, what = (STEP_COLOUR, "first step") if stepped else (END_COLOUR, "end")
    axes.axvline(total, color=colour, linestyle="--", linewidth=1.2)
    axes.set_title(f"{what}: {total:.2f} s", x=total / axes.get_xlim()[1], loc="center")
    axes.set_xlabel("seconds since the trigger")
    return figure


def _draw_bars(axes: Axes, shown: Sequence[Span], start: float, total: float) -> None:
    """A labelled bar per span, the first one at the top; `total` seconds from `start` on."""
    right = total * (1 + TAIL_SHARE)
    lefts = [span.start - start for span in shown]
    ends = [min(span.end - start, right) for span in shown]
    bars = axes.barh(
        range(len(shown)),
        [max(end - left, total * 0.002) for left, end in zip(lefts, ends, strict=True)],
        left=lefts,
        height=0.66,
        color=[COLOURS.get(span.phase, "#888888") for span in shown],
    )
    labels = [
        f"{span.seconds:.2f} s"
        + ("" if span.state == "Completed" else f", {span.state}")
        + (GOES_ON if span.end - start > right else "")
        for span in shown
    ]
    axes.bar_label(bars, labels, padding=4, bbox=BEHIND_LABEL)
    axes.set_yticks(range(len(shown)), [span.name for span in shown])
    axes.invert_yaxis()
    axes.set_xlim(0, total * (1 + LABEL_SHARE))
    axes.grid(axis="y", visible=False)
