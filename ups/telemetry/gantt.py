"""The Gantt picture of a run's startup."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib.figure import Figure

from ups.telemetry.phases import Span

COLOURS = {
    "queue": "#9aa5b1",
    "boot": "#6b7785",
    "download": "#3b82c4",
    "warm-up": "#8e6bbf",
    "cache": "#d9822b",
    "load": "#c9a227",
    "first step": "#2e9e5b",
    "train": "#a8d8b9",
    "evaluate": "#cfd8dc",
}
TAIL_S = 0.06


def draw_gantt(spans: Sequence[Span], start: float, end: float, title: str) -> bytes:
    """A bar per span from the trigger to a little after the first step, as PNG.

    Args:
        start, end: of the startup, Unix times in seconds; what goes on after it is cut.
    """
    shown = sorted((s for s in spans if s.start < end), key=lambda s: (s.start, s.end))
    total = max(end - start, 1e-3)
    figure = Figure(figsize=(11, 0.42 * len(shown) + 1.6), layout="constrained")
    axes = figure.add_subplot()
    for row, span in enumerate(shown):
        left, right = span.start - start, min(span.end - start, total * (1 + TAIL_S))
        width = max(right - left, total * 0.002)
        colour = COLOURS.get(span.phase, "#888888")
        axes.barh(row, width, left=left, height=0.66, color=colour)
        label = f"{span.seconds:.2f} s" + ("" if span.state == "Completed" else f", {span.state}")
        inside = left + width > 0.85 * total
        axes.annotate(
            label,
            (left if inside else left + width, row),
            xytext=(-4 if inside else 4, 0),
            textcoords="offset points",
            va="center",
            ha="right" if inside else "left",
            fontsize=10,
        )
    axes.axvline(total, color="#2e9e5b", linestyle="--", linewidth=1.2)
    axes.set_yticks(range(len(shown)), [span.name for span in shown], fontsize=10)
    axes.invert_yaxis()
    axes.set_xlim(0, total * (1 + TAIL_S))
    axes.set_xlabel("seconds since the trigger")
    axes.set_title(title, fontsize=12, loc="left")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
