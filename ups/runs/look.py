"""The look of all pictures: one panel that suits a white page and a near-black one.

No colour of text reads well on both (4.5:1 on one leaves at most 4.2:1 on the other), so the
pictures bring a dark background of their own.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

WIDTH_IN = 9.0  # shown 900 pixels wide, a point is 1.39 pixels
DPI = 200  # twice the pixels that are shown, for sharp screens
SMALL_DPI = 130  # of a picture that is sent while a run trains, and of photographs of fields
PANEL, TEXT, GRID = "#1a1f27", "#e8ecf1", "#3a4350"
FONT_PT = 11  # readable where the UI scales the picture down to 700 pixels
STYLE: dict[Any, Any] = {
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.12,
    "figure.constrained_layout.h_pad": 0.1,
    "font.size": FONT_PT,
    **dict.fromkeys(("axes.titlesize", "figure.titlesize"), "medium"),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor"), PANEL),
    **dict.fromkeys(("text.color", "axes.labelcolor"), TEXT),
    **dict.fromkeys(("xtick.labelcolor", "ytick.labelcolor"), TEXT),
    **dict.fromkeys(("axes.edgecolor", "grid.color", "xtick.color", "ytick.color"), GRID),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    **dict.fromkeys(("axes.grid", "axes.axisbelow"), True),
    "patch.force_edgecolor": True,
    "patch.edgecolor": PANEL,
    "patch.linewidth": 0.8,
    "axes.titlelocation": "left",
    "ytick.major.size": 0,
    "legend.handlelength": 1.0,
}
_drawing = threading.RLock()  # matplotlib's settings are the whole process's


@contextmanager
def look(*, is_laid_out: bool = True) -> Iterator[None]:
    """Draw in this look inside, or in the function that this decorates; one picture at a time.

    Args:
        is_laid_out: whether constraints find room for all; it takes as long as all the rest.
    """
    with _drawing, rc_context({**STYLE, "figure.constrained_layout.use": is_laid_out}):
        yield


def to_png(figure: Figure, dpi: int = DPI) -> bytes:
    """The picture, drawn once: `savefig` draws it a second time, only to lay it out."""
    buffer = io.BytesIO()
    figure.set_dpi(dpi)
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
