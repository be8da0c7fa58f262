"""The pictures of a run: all is within them, and no text lies on another."""

import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from ups.runs.breakdown import Span
from ups.runs.curves import curves_figure
from ups.runs.gantt import gantt_figure
from ups.runs.look import PANEL, look
from ups.runs.metrics import LOSS, VAL


@pytest.fixture(autouse=True)
def drawn_in_the_look():
    with look():
        yield


def boxes_of(figure):
    """Text → where it is drawn, in pixels: of all that is seen."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    unseen = set()
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        ticks = [t for t in axis.get_major_ticks() if not low <= t.get_loc() <= high]
        unseen |= {label for tick in ticks for label in (tick.label1, tick.label2)}
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text()]
    texts = [text for text in texts if text not in unseen]
    return {text: text.get_window_extent(canvas.get_renderer()) for text in texts}


def check_texts(figure):
    """Each is within the picture, and on no other."""
    boxes = boxes_of(figure)
    outside = {text.get_text(): box for text, box in boxes.items() if not is_within(figure, box)}
    assert not outside
    for one, other in itertools.combinations(boxes, 2):
        assert not boxes[one].overlaps(boxes[other]), (one.get_text(), other.get_text())
    assert figure.get_facecolor()[:3] == pytest.approx(
        [int(PANEL[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    )


def is_within(figure, box):
    return (
        box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y0 >= 0 and box.y1 <= figure.bbox.height
    )


def span(phase, start, end, **known):
    return Span(phase=phase, name=f"1 {phase}", start=start, end=end, **known)


@pytest.mark.parametrize("train_s", [1.0, 36_000.0])
def test_the_startup_is_as_visible_beside_a_long_training_as_beside_a_short_one(train_s):
    spans = [span("queue", 0, 1), span("download", 1, 4), span("first step", 4, 5)]
    figure = gantt_figure([*spans, span("train", 5, 5 + train_s)], 0, 5)
    (axes,) = figure.axes
    assert axes.get_xlim() == (0, 6)
    assert [bar.get_width() for bar in axes.patches][:3] == [1, 3, 1]
    words = [text.get_text() for text in axes.texts]
    assert words[-1] == f"{train_s:.2f} s →"
    assert words[0] == "1.00 s"
    assert axes.get_title() == "first step: 5.00 s"
    check_texts(figure)


def test_of_a_startup_that_failed_the_picture_says_in_what():
    spans = [span("queue", 0, 1), span("download", 1, 4, state="Failed")]
    figure = gantt_figure(
        spans, 0, 4, [Span(phase="provision/clone", name="clone", start=-9, end=-1)]
    )
    assert "3.00 s, Failed" in [text.get_text() for text in figure.axes[-1].texts]
    assert figure.axes[-1].get_title() == "end: 4.00 s"
    check_texts(figure)


def test_the_labels_of_a_linear_axis_have_as_many_decimals_each():
    for scale, expected in ((1, ["0.08", "0.10", "0.12"]), (1e-6, ["8e-08", "1e-07", "1.2e-07"])):
        errors = [error * scale for error in (0.12, 0.1, 0.08)]
        with look(is_laid_out=False):
            figure = curves_figure([{"epoch": i, LOSS: e, VAL: e} for i, e in enumerate(errors, 1)])
            figure.draw_without_rendering()
        axis = figure.axes[1].yaxis
        assert set(expected) <= {label.get_text() for label in axis.get_ticklabels()}
        assert axis.get_offset_text().get_text() == ""


@pytest.mark.parametrize(
    ("num_epochs", "problems"),
    [
        (1, []),
        (12, ["burgers1d", "advection"]),
        (300, [f"a_problem_of_a_long_name_{n}" for n in range(8)]),
    ],
)
def test_the_curves_have_all_names_and_cut_none(num_epochs, problems):
    errors = np.linspace(0.5, 0.01, num_epochs)
    epochs = [
        {
            "epoch": i + 1,
            LOSS: error**2,
            VAL: error,
            **{f"val/{p}/nrmse_rollout": error for p in problems},
        }
        for i, error in enumerate(errors)
    ]
    with look(is_laid_out=False):
        figure = curves_figure(epochs)
        check_texts(figure)
    named = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert named == ([*problems, "mean"] if problems else [])
    assert (
        figure.axes[1].get_title("left")
        == f"val nRMSE: lowest {errors[-1]:.4f}, epoch {num_epochs}"
    )
