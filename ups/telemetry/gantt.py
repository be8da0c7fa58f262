"""The Gantt picture of a run's startup."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from ups.telemetry.phases import Span

COLOURS = {
    "queue": "#9aa5b1",
    "boot": "#6b7785",
    "validate": "#4f8a8b",
    "download": "#3b82c4",
    "warm-up": "#8e6bbf",
    "cache": "#d9822b",
    "load": "#c9a227",
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
LETTER_SHARE = 0.015  # width of a letter, as a share of the startup; with a margin


def draw_gantt(
    spans: Sequence[Span],
    start: float,
    end: float,
    title: str,
    provision: Sequence[Span] = (),
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
    for row, span in enumerate(shown):
        left, right = span.start - start, min(span.end - start, total * (1 + TAIL_SHARE))
        width = max(right - left, total * 0.002)
        colour = COLOURS.get(span.phase, "#888888")
        axes.barh(row, width, left=left, height=0.66, color=colour)
        label = f"{span.seconds:.2f} s" + ("" if span.state == "Completed" else f", {span.state}")
        at, side, text_colour = _place(label, left, width, total, colour)
        axes.annotate(
            label,
            (at, row),
            xytext=(4 if side == "left" else -4, 0),
            textcoords="offset points",
            va="center",
            ha=side,
            color=text_colour,
            fontsize=FONT_PT,
        )
    axes.set_yticks(range(len(shown)), [span.name for span in shown], fontsize=FONT_PT)
    axes.invert_yaxis()
    axes.set_xlim(0, total * (1 + TAIL_SHARE))
    axes.tick_params(axis="x", labelsize=FONT_PT)
    axes.set_axisbelow(True)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _place(
    label: str, left: float, width: float, total: float, colour: str
) -> tuple[float, Literal["left", "right"], str]:
    """Where a bar's label stands so that it covers neither the line at the end nor the names.

    Returns:
        The x that it is anchored at, in seconds; the side of it that stands there; its colour.
    """
    needs = len(label) * LETTER_SHARE * total
    if left + width + needs < total:
        return left + width, "left", "black"
    if width > needs:
        red, green, blue = to_rgb(colour)
        is_dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.55
        return min(left + width, total), "right", "white" if is_dark else "black"
    return left, "right", "black"
