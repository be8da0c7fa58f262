"""Pictures of predictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from ups.files import replacing


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
    time = step_dt * np.arange(given_frames, given_frames + errors_NT.shape[1])
    rows, edges = len(examples), (time[0] - step_dt / 2, time[-1] + step_dt / 2)
    figure = Figure(figsize=(9, 1.7 * rows + 2.5), layout="constrained")
    grid = figure.add_gridspec(rows + 1, 3, height_ratios=[1.0] * rows + [1.15])
    for row, (target, prediction) in enumerate(examples):
        fields = {"truth": target, "prediction": prediction, "error": prediction - target}
        for column, (name, field) in enumerate(fields.items()):
            scale = float((field if name == "error" else target).abs().max())
            axes = figure.add_subplot(grid[row, column])
            _draw_field(axes, field, scale, edges)
            axes.set_yticks([0, 0.5, 1], ["0", "", "1"])
            axes.tick_params(labelbottom=row == rows - 1, labelleft=column == 0)
            if row == 0:
                axes.set_title(name)
            if row == rows - 1:
                axes.set_xlabel("t")
            if column == 0:
                axes.set_ylabel(f"trajectory {row}\nx")
    axes = figure.add_subplot(grid[rows, :])
    scored_T = ~np.isnan(errors_NT).all(0)
    time, errors_NT = time[scored_T], errors_NT[:, scored_T]
    low, middle, high = np.nanpercentile(errors_NT, [10, 50, 90], axis=0)
    axes.fill_between(time, low, high, alpha=0.25, label="10th to 90th percentile")
    axes.plot(time, middle, label="median")
    axes.set_xlabel("t")
    axes.set_ylabel("rollout nRMSE")
    axes.set_title(f"error over time, {len(errors_NT)} test trajectories")
    axes.set_xlim(edges[0] - step_dt / 2, edges[1])
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    with replacing(path, durable=False) as file:
        figure.savefig(file, format="png", dpi=130)


def draw_fields(path: Path, fields: Sequence[Tensor], step_dt: float, given_frames: int) -> None:
    """Predictions that there is no truth of, each (T, X), field units, one below the other."""
    first = step_dt * (given_frames - 0.5)
    edges = (first, first + step_dt * len(fields[0]))
    figure = Figure(figsize=(6, 1.9 * len(fields) + 0.8), layout="constrained")
    for row, field in enumerate(fields):
        axes = figure.add_subplot(len(fields), 1, row + 1)
        _draw_field(axes, field, float(field.abs().max()), edges)
        axes.set_yticks([0, 0.5, 1], ["0", "", "1"])
        axes.set_ylabel(f"trajectory {row}\nx")
        axes.tick_params(labelbottom=row == len(fields) - 1)
        if row == 0:
            axes.set_title("prediction")
    axes.set_xlabel("t")
    with replacing(path, durable=False) as file:
        figure.savefig(file, format="png", dpi=130)


def _draw_field(axes: Axes, field: Tensor, scale: float, edges: tuple[float, float]) -> None:
    """(T, X) as colours, and their bar; a column is centred on its time."""
    image = axes.imshow(
        field.T.numpy(),
        origin="lower",
        aspect="auto",
        extent=(*edges, 0, 1),
        cmap="RdBu_r",
        vmin=-scale,
        vmax=scale,
    )
    axes.figure.colorbar(image, ax=axes, ticks=MaxNLocator(nbins=4))
