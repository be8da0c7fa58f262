"""How a training goes, as a page: the curves, the last epochs, and the time that is left."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ups.pipeline.state import RunState, Steps
from ups.runs.metrics import LOSS, VAL, read_metrics
from ups.runs.record import how_it_ended
from ups.runs.table import Row, markdown_image, markdown_table
from ups.units import format_age

NUM_EPOCHS = 10  # the latest, in the table


def training_page(run: RunState, now: float, *, goes_on: bool) -> tuple[str, str]:
    """The title of a run's training, and all of it as Markdown, once a step is taken.

    Args:
        now: Unix time in seconds.
    """
    assert run.steps is not None, "a step is taken"
    epochs = read_metrics(run.run_dir).epochs
    title = f"{run.config.name}: {_standing(run, run.steps, len(epochs), now, goes_on=goes_on)}"
    blocks = [f"## {title}"]
    if epochs:
        from ups.runs.curves import draw_curves

        picture = draw_curves(epochs)
        blocks.append(markdown_image("train loss and val nRMSE, epoch by epoch", picture))
    figures = {"run folder": run.run_dir.name, **_figures(run, run.steps, epochs, now)}
    if goes_on:
        figures["as of"] = f"{datetime.fromtimestamp(now, UTC):%H:%M:%S} UTC, while it trains"
    blocks.append("\n".join(f"- {name}: {text}" for name, text in figures.items()))
    blocks.append(markdown_table(epoch_rows(epochs[-NUM_EPOCHS:]), right=COLUMNS))
    if len(epochs) > NUM_EPOCHS:
        blocks.append(f"The last {NUM_EPOCHS} epochs; `metrics.jsonl` in the folder has all.")
    return title, "\n\n".join(block for block in blocks if block)


COLUMNS = ("epoch", "train loss", "val nRMSE", "learning rate", "seconds", "val seconds")


def epoch_rows(epochs: Sequence[Mapping[str, Any]]) -> list[Row]:
    """A row per epoch, the latest first."""
    forms = {
        "epoch": "d",
        LOSS: ".3e",
        VAL: ".4f",
        "train/lr": ".2e",
        "training/epoch_time_sec": ".2f",
        "val/time_sec": ".2f",
    }
    cells = [[_text(row.get(name), form) for name, form in forms.items()] for row in epochs[::-1]]
    return [dict(zip(COLUMNS, row, strict=True)) for row in cells]


def _standing(run: RunState, steps: Steps, num_done: int, now: float, *, goes_on: bool) -> str:
    num = run.config.stages.operator.epochs
    if goes_on:
        rate = _steps_per_s(run, steps, now)
        left_s = (steps.total - steps.last) / rate if rate else None
        left = "" if left_s is None else f", about {format_age(left_s)} left"
        return f"epoch {min(num_done + 1, num)} of {num}{left}"
    if run.failure is not None and steps.last < steps.total:
        return f"{how_it_ended(run.failure)} in epoch {min(num_done + 1, num)} of {num}"
    return f"{num_done} epochs" if num_done == num else f"ended after epoch {num_done} of {num}"


def _steps_per_s(run: RunState, steps: Steps, now: float) -> float | None:
    """Since the first step, validation included; None before the second."""
    since = run.first_step_at
    if since is None or steps.last == steps.first or now <= since:
        return None
    return (steps.last - steps.first) / (now - since)


def _figures(
    run: RunState, steps: Steps, epochs: Sequence[Mapping[str, Any]], now: float
) -> dict[str, str]:
    rate = _steps_per_s(run, steps, now)
    figures = {"steps": f"{steps.last:,} of {steps.total:,}"}
    if rate is not None:
        figures["steps"] += f", {rate:.3g} a second with validation"
    errors = [(row[VAL], row["epoch"]) for row in epochs if row.get(VAL) is not None]
    if errors:
        error, at = min(errors)
        figures["lowest val nRMSE"] = f"{error:.4f}, in epoch {at}"
    elif not epochs:
        figures["val nRMSE"] = "not known before the end of epoch 1"
    return figures


def _text(value: float | None, form: str) -> str:
    return "not finite" if value is None or not math.isfinite(value) else format(value, form)
