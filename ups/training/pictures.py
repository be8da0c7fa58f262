"""Pictures of predictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from ups.files import replacing
from ups.runs.look import SMALL_DPI, WIDTH_IN, look, to_png
from ups.training.metrics import nrmse_over_time

LINE = "#6db3f2"


def draw_prediction(
    path: Path,
    examples: Sequence[tuple[Tensor, Tensor]],
    errors_NT: NDArray[np.floating],
    step_dt: float,
    given_frames: int,
) -> None:
    """Truth, prediction and error of some trajectories, and the error of all of them over time.

    Args:
        examples: (target, prediction), each (T, X), field units.
        errors_NT: nRMSE of every test trajectory at every step, dimensionless, NaN for none.
        step_dt: time of a step.
        given_frames: that come before those, the first of them at time 0.
    """
    with look(), replacing(path, durable=False) as file:
        figure = prediction_figure(examples, errors_NT, step_dt, given_frames)
        file.write(to_png(figure, SMALL_DPI))


def prediction_figure(
    examples: Sequence[tuple[Tensor, Tensor]],
    errors_NT: NDArray[np.floating],
    step_dt: float,
    given_frames: int,
) -> Figure:
    """The picture of `draw_prediction`: a row's fields are on one scale, and all errors on one."""
    time = step_dt * np.arange(given_frames, given_frames + errors_NT.shape[1])
    rows, edges = len(examples), (time[0] - step_dt / 2, time[-1] + step_dt / 2)
    figure = Figure(figsize=(WIDTH_IN, 1.8 * rows + 2.7))
    grid = figure.add_gridspec(2, 1, height_ratios=[1.8 * rows + 0.4, 2.3])
    above, below = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    panels = above.subplots(rows, 3, squeeze=False, sharex=True, sharey=True)
    largest = max(float((pred - target).abs().max()) for target, pred in examples)
    for row, (target, prediction) in enumerate(examples):
        scale = float(target.abs().max())
        _draw_field(panels[row, 0], target, scale, edges)
        field = _draw_field(panels[row, 1], prediction, scale, edges)
        error = _draw_field(panels[row, 2], prediction - target, largest, edges)
        above.colorbar(field, ax=panels[row, 1], ticks=MaxNLocator(nbins=4))
        score = float(nrmse_over_time(prediction[None], target[None]).nanmean())
        panels[row, 1].set_title(f"nRMSE {score:.4f}", loc="right")
        panels[row, 0].set_ylabel(f"trajectory {row}\nx")
    above.colorbar(error, ax=panels[:, 2], ticks=MaxNLocator(nbins=5), aspect=15 * rows)
    for axes, name in zip(panels[0], ("truth", "prediction", "prediction − truth"), strict=True):
        axes.set_title(name, loc="left")
    for axes in panels[-1]:
        axes.set_xlabel("t")
    _draw_errors(below.subplots(), time, errors_NT, edges)
    return figure


def _draw_errors(
    axes: Axes,
    time: NDArray[np.floating],
    errors_NT: NDArray[np.floating],
    edges: tuple[float, float],
) -> None:
    """nRMSE over time: the median of all trajectories, and most of them."""
    scored_T = ~np.isnan(errors_NT).all(0)
    time, errors_NT = time[scored_T], errors_NT[:, scored_T]
    low, middle, high = np.nanpercentile(errors_NT, [10, 50, 90], axis=0)
    axes.fill_between(time, low, high, color=LINE, alpha=0.3, label="10th to 90th percentile")
    axes.plot(time, middle, color=LINE, label="median")
    axes.set_xlabel("t")
    axes.set_ylabel("rollout nRMSE")
    axes.set_title(f"error over time, {len(errors_NT)} test trajectories")
    axes.set_xlim(edges)
    axes.set_ylim(bottom=0)
    # Above the axes, where no line is.
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.1, ncols=2)


def draw_fields(path: Path, fields: Sequence[Tensor], step_dt: float, given_frames: int) -> None:
    """Predictions that there is no truth of, each (T, X), field units, one below the other."""
    first = step_dt * (given_frames - 0.5)
    edges = (first, first + step_dt * len(fields[0]))
    with look(), replacing(path, durable=False) as file:
        figure = Figure(figsize=(6, 1.9 * len(fields) + 0.8))
        panels = figure.subplots(len(fields), 1, squeeze=False, sharex=True)[:, 0]
        for row, (axes, field) in enumerate(zip(panels, fields, strict=True)):
            image = _draw_field(axes, field, float(field.abs().max()), edges)
            figure.colorbar(image, ax=axes, ticks=MaxNLocator(nbins=4))
            axes.set_ylabel(f"trajectory {row}\nx")
        panels[0].set_title("prediction")
        panels[-1].set_xlabel("t")
        file.write(to_png(figure, SMALL_DPI))


def _draw_field(axes: Axes, field: Tensor, scale: float, edges: tuple[float, float]) -> AxesImage:
    """(T, X) as colours from -scale to scale; a column is centred on its time."""
    axes.set_yticks([0, 0.5, 1], ["0", "", "1"])
    axes.grid(visible=False)
    return axes.imshow(
        field.T.numpy(),
        origin="lower",
        aspect="auto",
        extent=(*edges, 0, 1),
        cmap="RdBu_r",
        vmin=-scale,
        vmax=scale,
    )
