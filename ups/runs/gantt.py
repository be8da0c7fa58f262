"""The Gantt picture of a run's startup."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ups.runs.breakdown import Span

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
FONT_PT = 11  # readable where the UI scales the picture down to 700 pixels
LABEL_SHARE = 0.2  # room for the labels of the last bars, as a share of the startup
BEHIND_LABEL = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}


def draw_gantt(
    spans: Sequence[Span], start: float, end: float, title: str, provision: Sequence[Span] = ()
) -> bytes:
    """A bar per span from the trigger to a little after the first step, as PNG.

    Args:
        start, end: of the startup, Unix times in seconds; what goes on after it is cut.
        provision: what the machine did before the trigger; above, on a scale of its own.
    """
    shown = sorted((s for s in spans if s.start < end), key=lambda s: (s.start, s.end))
    total = max(end - start, 1e-3)
    rows = [len(provision), len(shown)] if provision else [len(shown)]
    figure = Figure(figsize=(9, 0.36 * sum(rows) + 0.9 * len(rows) + 0.5), layout="constrained")
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
    axes.axvline(total, color="#2e9e5b" if stepped else "#c62828", linestyle="--", linewidth=1.2)
    axes.set_xlabel("seconds since the trigger", fontsize=FONT_PT)
    figure.suptitle(title, fontsize=FONT_PT + 1, x=0.01, ha="left")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


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
        f"{span.seconds:.2f} s" + ("" if span.state == "Completed" else f", {span.state}")
        for span in shown
    ]
    axes.bar_label(bars, labels, padding=4, fontsize=FONT_PT, bbox=BEHIND_LABEL)
    axes.set_yticks(range(len(shown)), [span.name for span in shown])
    axes.invert_yaxis()
    axes.set_xlim(0, total * (1 + LABEL_SHARE))
    axes.tick_params(labelsize=FONT_PT)
    axes.set_axisbelow(True)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
