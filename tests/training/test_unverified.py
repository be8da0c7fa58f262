"""Training on data that are not verified yet: what it waits for, and what is left of it."""

import threading

import numpy as np
import pytest

from tests.live import wait_until
from ups.data.sources import Staged, file_state
from ups.errors import CheckpointError, ChecksumMismatch, DataError, Interrupted
from ups.latents.arrival import Arrival
from ups.runs.folder import CHECKPOINTS, LAST, UNVERIFIED
from ups.runs.metrics import read_metrics
from ups.training import checkpoint, saving
from ups.training.loop import train

FETCHES = {"burgers1d": ["one", "two"]}


class Arriving(Arrival):
    """Notes what is waited for, and has all of it come at once; `settled_at` so many waits."""

    def __init__(self, latents, settled_at=1, error=None, sources=()):
        super().__init__(len(latents.train), sources)
        self.asked, self._settled_at, self._settles_with = [], settled_at, error
        latents.arrival, latents.fetches = self, FETCHES

    def wait_for(self, rows, is_stopped):
        self.asked.append(sorted(rows.tolist()))
        for row in set(self.asked[-1]):
            self.note(row, row + 1)
        return super().wait_for(rows, is_stopped)

    def wait_settled(self, is_stopped):
        self.asked.append("all")
        if self._settles_with:
            self.fail(self._settles_with)
        elif self.asked.count("all") >= self._settled_at:
            self.settle()
        return super().wait_settled(is_stopped)


@pytest.mark.parametrize("overrides", [{}, {"training__pairs_per_step": 40}, {"max_steps": 2}])
def test_a_step_waits_for_the_rows_of_its_batch_and_what_is_saved_for_the_verdict(
    prepared, assert_same_weights, overrides
):
    if "max_steps" in overrides:
        overrides = {"stages__operator__max_steps": 2}
    config, latents, plain = prepared("plain", **overrides)
    expected = train(config, latents, plain)
    config, latents, run_dir = prepared("arriving", **overrides)
    arriving, taken, real = Arriving(latents), [], latents.train.batch

    def batch(index_B, frames_BF=None):
        taken.append(sorted(index_B.tolist()))
        assert set(taken[-1]) <= set(np.flatnonzero(arriving._is_there).tolist())
        return real(index_B, frames_BF)

    latents.train.batch = batch
    result = train(config, latents, run_dir)
    first_epoch = arriving.asked[: arriving.asked.index("all")]
    assert first_epoch
    assert first_epoch == taken[: len(first_epoch)]
    assert result.num_steps == expected.num_steps
    assert_same_weights(plain, run_dir)


@pytest.mark.parametrize("error", [ChecksumMismatch("x.h5", "1", "2"), DataError("NaN")])
def test_nothing_is_saved_of_steps_on_data_that_turn_out_to_be_false(prepared, error):
    config, latents, run_dir = prepared()
    Arriving(latents, error=error)
    with pytest.raises(type(error), match=str(error)):
        train(config, latents, run_dir)
    assert not list(run_dir.rglob("*.pt"))
    assert read_metrics(run_dir).epochs == []


def test_a_false_source_takes_no_checkpoint_of_verified_data_with_it(
    prepared, stop_after, assert_same_weights
):
    config, latents, whole = prepared("whole")
    train(config, latents, whole)
    config, latents, run_dir = prepared()
    with pytest.raises(Interrupted):
        train(config, latents, run_dir, stop=stop_after(latents.train, 6))
    config, latents, run_dir = prepared()
    arriving = Arriving(latents, error=ChecksumMismatch("x.h5", "1", "2"))
    with pytest.raises(ChecksumMismatch):
        train(config, latents, run_dir)
    assert arriving.asked == ["all"]  # no step of a later epoch before the verdict
    config, latents, run_dir = prepared()
    assert train(config, latents, run_dir).resumed_from_step == 6
    assert_same_weights(whole, run_dir)


@pytest.fixture
def stopped(prepared, stop_after, caplog):
    """`stopped(steps, sources)`: a run that was stopped before the verdict; its folder."""

    def make(steps=2, sources=()):
        caplog.set_level("INFO", "ups")
        config, latents, run_dir = prepared()
        Arriving(latents, settled_at=2, sources=sources)
        with pytest.raises(Interrupted):
            train(config, latents, run_dir, stop=stop_after(latents.train, steps))
        return run_dir

    return make


def resumed(prepared, fetches=FETCHES, **overrides):
    """Train on in the same folder, once the data are verified."""
    config, latents, run_dir = prepared(**overrides)
    latents.fetches = fetches
    return train(config, latents, run_dir)


def left(run_dir):
    return sorted(path.name for path in (run_dir / CHECKPOINTS).iterdir())


# The middle of the epoch, its last step, and the wait for the verdict.
@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("again", ["streamed", "verified since"])
def test_a_run_stopped_before_the_verdict_goes_on_at_its_step_to_the_same_weights(
    prepared, stopped, assert_same_weights, steps, again
):
    config, latents, whole = prepared("whole")
    train(config, latents, whole)
    run_dir = stopped(steps)
    assert left(run_dir) == [UNVERIFIED]
    config, latents, _ = prepared()
    latents.fetches = FETCHES
    if again == "streamed":
        Arriving(latents)
    assert train(config, latents, run_dir).resumed_from_step == steps
    assert_same_weights(whole, run_dir)
    one, other = ([row["train/loss"] for row in read_metrics(d).epochs] for d in (whole, run_dir))
    assert one == pytest.approx(other, rel=1e-6)  # summed in two parts
    assert left(run_dir) == ["best.pt", LAST]


def test_data_that_were_fetched_anew_are_trained_on_from_the_first_step(
    prepared, stopped, assert_same_weights, caplog
):
    config, latents, whole = prepared("whole")
    train(config, latents, whole)
    for fetches in ({"burgers1d": ["one", "three"]}, {"burgers1d": []}, {}):
        run_dir = stopped()
        caplog.clear()
        assert resumed(prepared, fetches).resumed_from_step == 0
        assert "trained on data before they were verified, and those that" in caplog.text
        assert_same_weights(whole, run_dir)
        assert left(run_dir) == ["best.pt", LAST]
        (run_dir / CHECKPOINTS / LAST).unlink()


@pytest.mark.parametrize("fault", ["damaged", "another model"])
def test_what_a_run_cannot_go_on_from_is_left_and_said(prepared, stopped, caplog, fault):
    run_dir = stopped()
    if fault == "damaged":
        (run_dir / CHECKPOINTS / UNVERIFIED).write_bytes(b"not a checkpoint")
    overrides = {"operator__hidden_dim": 64} if fault == "another model" else {}
    assert resumed(prepared, **overrides).resumed_from_step == 0
    reason = {"damaged": "is not a checkpoint", "another model": "was trained with operator.hidden"}
    assert f"{UNVERIFIED} {reason[fault]}" in caplog.text


def test_nobody_but_its_own_run_reads_what_was_trained_before_the_verdict(prepared, stopped):
    path = stopped() / CHECKPOINTS / UNVERIFIED
    for read in (checkpoint.load, lambda path: train(*prepared("other"), resume=path)):
        with pytest.raises(CheckpointError, match=r"own run alone goes on from it: name last\.pt"):
            read(path)


def test_a_file_that_was_written_to_while_it_was_read_leaves_nothing_to_go_on_from(
    stopped, tmp_path, caplog
):
    path = tmp_path / "train.h5"
    path.write_bytes(b"as it was hashed")
    known = {"split": "train", "uri": str(path), "path": path, "rows": None, "sha256": "1"}
    source = Staged(**known, num_bytes=16, fetched_bytes=0, seconds=0, state=file_state(path))
    assert left(stopped(sources=[source])) == [UNVERIFIED]
    path.write_bytes(b"as it was trained on")
    (tmp_path / "run" / CHECKPOINTS / UNVERIFIED).unlink()
    assert left(stopped(sources=[source])) == []
    assert "before the data were verified; step 0 is saved" in caplog.text


@pytest.mark.parametrize("error", [ChecksumMismatch("x.h5", "1", "2"), DataError("NaN")])
def test_data_that_turn_out_to_be_false_after_a_resume_take_its_checkpoint_with_them(
    prepared, stopped, error
):
    run_dir = stopped()
    config, latents, _ = prepared()
    Arriving(latents, error=error)
    with pytest.raises(type(error), match=str(error)):
        train(config, latents, run_dir)
    assert left(run_dir) == []


class Slow(Arriving):
    """Has each batch but the first waited for until a save is due."""

    due = None

    def wait_for(self, rows, is_stopped):
        if self.asked and self.due != rows.tolist():
            self.due = rows.tolist()
            wait_until(is_stopped, 10)
            return False
        return super().wait_for(rows, is_stopped)


def test_what_is_not_verified_is_saved_while_data_are_waited_for_and_that_changes_nothing(
    prepared, assert_same_weights, monkeypatch
):
    write, saved = checkpoint.write, []

    def note(record, path, *others, **how):
        write(record, path, *others, **how)
        if path.name == UNVERIFIED:
            saved.append(checkpoint.load_unverified(path, "cpu", FETCHES)["position"]["step"])

    config, latents, whole = prepared("whole")
    train(config, latents, whole)
    monkeypatch.setattr(saving, "UNVERIFIED_EVERY_S", 0.0)
    monkeypatch.setattr(checkpoint, "write", note)
    config, latents, run_dir = prepared()
    Slow(latents)
    train(config, latents, run_dir)
    assert saved == [1, 2, 3]
    assert left(run_dir) == ["best.pt", LAST]
    assert_same_weights(whole, run_dir)
    one, other = ([row["train/loss"] for row in read_metrics(d).epochs] for d in (whole, run_dir))
    assert one == other


@pytest.mark.parametrize("what", ["rows", "the verdict"])
def test_a_stop_while_something_is_waited_for_ends_the_wait(prepared, what):
    config, latents, run_dir = prepared()
    stop, arrival = threading.Event(), Arriving(latents, settled_at=2)
    if what == "rows":
        latents.arrival = Arrival(len(latents.train))
    threading.Timer(0.5, stop.set).start()
    with pytest.raises(Interrupted):
        train(config, latents, run_dir, stop=stop)
    assert ("all" in arrival.asked) == (what == "the verdict")
    assert [p.name for p in run_dir.rglob("*.pt")] == [UNVERIFIED] * (what == "the verdict")
