import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from ups.runs.look import look
from ups.training.pictures import prediction_figure


@pytest.fixture
def figure():
    """Of two trajectories, whose errors are 0.1 and 0.2 of a truth of 1 and 2."""
    target = torch.stack([torch.ones(4, 8), 2 * torch.ones(4, 8)])
    pred = target * torch.tensor([1.1, 0.8])[:, None, None]
    with look():
        yield prediction_figure(list(zip(target, pred, strict=True)), np.full((2, 4), 0.15), 0.1, 1)


def test_all_errors_are_on_one_scale_around_zero_and_each_row_has_its_score(figure):
    panels = [axes for axes in figure.findobj(type(figure.axes[0])) if axes.images]
    images = [axes.images[0] for axes in panels]
    assert [image.get_clim()[1] for image in images[2::3]] == pytest.approx([0.4, 0.4])
    assert [image.get_clim()[0] for image in images[2::3]] == pytest.approx([-0.4, -0.4])
    assert [image.get_clim() for image in images[0::3]] == [(-1, 1), (-2, 2)]
    assert [image.get_clim() for image in images[1::3]] == [(-1, 1), (-2, 2)]
    titles = [axes.get_title("left") for axes in panels[:3]]
    assert titles == ["truth", "prediction", "prediction − truth"]
    assert [axes.get_title("right") for axes in panels[1::3]] == ["nRMSE 0.1000", "nRMSE 0.2000"]
    assert float(images[5].get_array().min()) == pytest.approx(-0.4)  # predicted too small: below 0


def test_the_legend_is_within_the_picture_and_on_no_line(figure):
    FigureCanvasAgg(figure).draw()
    (legend,) = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    box, axes = legend.get_window_extent(), legend.axes
    assert box.x1 <= figure.bbox.width
    assert box.y1 <= figure.bbox.height
    assert box.y0 >= axes.get_window_extent().y1
    title = axes.title if axes.title.get_text() else axes._left_title
    assert not box.overlaps(title.get_window_extent())
