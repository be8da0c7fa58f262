"""The sheet that the pictures of a comparison are drawn on: colours, sizes, and labels that fit.

No colour of text reads well on a white page and on a near-black one (4.5:1 on one leaves at most
4.2:1 on the other), so the pictures bring a dark background of their own, which suits both.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Annotation, Text

WIDTH_IN = 9.0  # shown 900 pixels wide, a point is 1.39 pixels
DPI = 200  # twice the pixels that are shown, for sharp screens
FONT_PT = 11
PANEL, TEXT, GRID = "#1a1f27", "#e8ecf1", "#3a4350"
NAME_LETTERS = 24  # of a line of a scenario's name


def new_sheet(height_in: float) -> Figure:
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    return Figure(figsize=(WIDTH_IN, height_in), layout=layout, facecolor=PANEL)


def sheet_of_rows(names: Sequence[str]) -> tuple[Figure, Axes]:
    """A figure with a row per name, each as high as the name with the most lines needs it."""
    num_lines = max(name.count("\n") + 1 for name in names)
    figure = new_sheet(len(names) * max(0.42, 0.2 * num_lines + 0.14) + 1.7)
    axes = figure.add_subplot()
    style(axes)
    axes.grid(axis="y", visible=False)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    return figure, axes


def style(axes: Axes) -> None:
    axes.set_facecolor(PANEL)
    axes.set_axisbelow(True)
    axes.grid(color=GRID, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    axes.tick_params(colors=TEXT, labelsize=FONT_PT, color=GRID)
    axes.xaxis.set_major_formatter(_plain)
    axes.yaxis.set_major_formatter(_plain)
    axes.xaxis.label.set(color=TEXT, fontsize=FONT_PT)


def _plain(value: float, _: float) -> str:
    return f"{value:,g}".replace("-", "−")


def set_title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", color=TEXT, fontsize=FONT_PT)


def add_legend(figure: Figure, entries: Sequence[Artist]) -> None:
    """Below everything, in as many rows as it takes."""
    for num_rows in range(1, len(entries) + 1):
        num_columns = -(-len(entries) // num_rows)
        by_column = [
            entry for column in range(num_columns) for entry in entries[column::num_columns]
        ]
        legend = figure.legend(
            handles=by_column,
            loc="outside lower left",
            ncols=num_columns,
            frameon=False,
            fontsize=FONT_PT,
            labelcolor=TEXT,
            handlelength=1.0,
            handletextpad=0.4,
            columnspacing=1.1,
        )
        if legend.get_window_extent().width <= figure.bbox.width or num_columns == 1:
            return
        legend.remove()


def write_beside(axes: Axes, x: float, row: int, text: str, is_left: bool = False) -> Annotation:
    return axes.annotate(
        text,
        (x, row),
        xytext=(-6 if is_left else 6, 0),
        textcoords="offset points",
        ha="right" if is_left else "left",
        va="center",
        color=TEXT,
        fontsize=FONT_PT,
        bbox={"facecolor": PANEL, "edgecolor": "none", "pad": 1.5},  # no grid through the text
    )


def make_room(figure: Figure, axes: Axes, labels: Sequence[Annotation]) -> None:
    """Widen the x axis until each label beside a bar fits into it."""
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.execute(figure)  # so that sizes are known
    left, right = axes.get_xlim()
    for _ in range(8):  # more room for one label leaves less for the rest
        for label in labels:
            x, share = label.xy[0], 1 - (label.get_window_extent().width + 14) / axes.bbox.width
            if label.get_horizontalalignment() == "left":
                right = max(right, left + (x - left) / share)
            else:
                left = min(left, right - (right - x) / share)
    axes.set_xlim(left, right)


def hide_what_does_not_fit(axes: Axes, labels: Sequence[tuple[Text, float, float]]) -> None:
    """Hide each label that is wider than the stretch [left, right] that it stands on.

    The layout must be set: after `make_room`.
    """
    for label, left, right in labels:
        ends = axes.transData.transform([(left, 0), (right, 0)])[:, 0]
        label.set_visible(label.get_window_extent().width + 6 < ends[1] - ends[0])


def wrapped(name: str, width: int = NAME_LETTERS) -> str:
    """A name over several lines, cut behind a hyphen or underscore where there is one."""
    breakable = name.replace("-", "-\0").replace("_", "_\0").replace("\0", " \0")
    lines: list[str] = [""]
    for piece in breakable.split(" \0"):
        for part in textwrap.wrap(piece, width) or [""]:
            if lines[-1] and len(lines[-1]) + len(part) > width:
                lines.append("")
            lines[-1] += part
    return "\n".join(lines)


def text_on(colour: str) -> str:
    """Black or white, whichever reads better on it."""
    return max(("black", "white"), key=lambda text: contrast(text, colour))


def contrast(one: str, other: str) -> float:
    """Of two colours, 1 to 21; text needs 4.5, a shape 3. Source: WCAG 2.2."""
    darker, lighter = sorted((_luminance(one), _luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def to_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()
