"""The page of a training: where it stands, how long it will take, its curves."""

import pytest

from ups.errors import Interrupted
from ups.pipeline.state import RunState, Steps
from ups.pipeline.training_page import training_page
from ups.runs.metrics import write_epochs

PICTURE = "data:image/png;base64,"


@pytest.fixture
def run(tiny_config, tmp_path):
    """A run of 40 epochs of 10 steps each whose first step was taken at 100."""
    config = tiny_config(stages__operator__epochs=40)
    return RunState(config, tmp_path, steps=Steps(1, 1, 400), first_step_at=100.0)


@pytest.fixture
def page(run):
    """`page(num_epochs, last_step, now)`: title and Markdown after so many epochs."""

    def make(num_epochs, last_step, now=120.0, *, goes_on=True, **metrics):
        rows = [row(epoch, **metrics) for epoch in range(1, num_epochs + 1)]
        if rows:
            write_epochs(run.run_dir, rows)
        run.note_steps(last_step, 400)
        return training_page(run, now, goes_on=goes_on)

    return make


def row(epoch, **metrics):
    errors = {"val/nrmse_rollout": 1 / epoch, **metrics}
    seconds = {"training/epoch_time_sec": 1.5, "val/time_sec": 0.25}
    steps = {"epoch": epoch, "step": 10 * epoch, "time": 0.0}
    return {**steps, "train/loss": 0.1 / epoch, "train/lr": 1e-3, **errors, **seconds}


def test_before_the_end_of_epoch_1_it_says_what_is_not_known(page):
    title, markdown = page(0, 1)
    assert title == "smoke: epoch 1 of 40"
    assert "- val nRMSE: not known before the end of epoch 1" in markdown
    assert PICTURE not in markdown
    assert "0.0" not in markdown


def test_it_says_the_epoch_the_time_left_the_lowest_error_and_the_last_epochs(page):
    title, markdown = page(12, 121)
    assert title == "smoke: epoch 13 of 40, about 46 s left"  # 279 steps at 6 a second
    assert "- steps: 121 of 400, 6 a second with validation" in markdown
    assert "- lowest val nRMSE: 0.0833, in epoch 12" in markdown
    assert "- as of: 00:02:00 UTC, while it trains" in markdown
    assert markdown.count(PICTURE) == 1
    assert "| 12 | 8.333e-03 | 0.0833 | 1.00e-03 | 1.50 | 0.25 |" in markdown
    assert markdown.count("| 1.50 | 0.25 |") == 10
    assert "`metrics.jsonl` in the folder has all" in markdown


def test_the_time_left_is_reckoned_from_the_step_that_a_resumed_run_went_on_from(run, page):
    run.steps = Steps(301, 301, 400)
    assert page(36, 361)[0].endswith("epoch 37 of 40, about 13 s left")  # 39 steps at 3 a second


@pytest.mark.parametrize(
    ("failure", "num_epochs", "last_step", "standing"),
    [
        (None, 40, 400, "40 epochs"),
        (None, 30, 300, "ended after epoch 30 of 40"),
        (Interrupted("stopped"), 12, 125, "stopped in epoch 13 of 40"),
        (OSError("disk"), 12, 125, "failed in epoch 13 of 40"),
        (OSError("scores"), 40, 400, "40 epochs"),
    ],
)
def test_in_the_end_it_says_how_far_the_training_came(
    run, page, failure, num_epochs, last_step, standing
):
    run.failure = failure
    title, markdown = page(num_epochs, last_step, goes_on=False)
    assert title == f"smoke: {standing}"
    assert "as of" not in markdown


def test_an_error_that_is_not_finite_is_said_and_of_several_problems_each_is_drawn(page):
    problems = {"val/a/nrmse_rollout": 0.5, "val/b/nrmse_rollout": None}
    markdown = page(2, 21, **{"val/nrmse_rollout": None, **problems})[1]
    assert "| 2 | 5.000e-02 | not finite |" in markdown
    assert "lowest" not in markdown
    assert PICTURE in markdown
