"""Training: it learns, resumes to the bit, stops cleanly, and refuses what cannot go on."""

import json
import os
import signal
import threading
import time
from contextlib import suppress

import pytest
import torch

from ups.errors import CheckpointError, DeviceError, DiskFull, Interrupted, TrainingDiverged
from ups.machine.cgroup import num_cores
from ups.pipeline.state import RunState, running
from ups.runs.folder import open_run_dir
from ups.runs.metrics import read_metrics
from ups.runs.stored import RunInfo
from ups.training import checkpoint, saving
from ups.training.evaluate import evaluate
from ups.training.loop import train
from ups.training.pictures import draw_prediction
from ups.training.step import TrainStep, epoch_order
from ups.training.validation import validate


def test_training_lowers_the_loss_and_leaves_a_record_and_a_checkpoint_with_the_config(prepared):
    config, latents, run_dir = prepared(stages__operator__epochs=8)
    first_steps = []
    result = train(config, latents, run_dir, on_first_step=first_steps.append)
    rows = read_metrics(run_dir).epochs
    assert [row["epoch"] for row in rows] == list(range(1, 9))
    assert rows[-1]["train/loss"] < 0.7 * rows[0]["train/loss"]
    assert result.num_steps == 32
    assert first_steps == [result.first_step_at]
    saved = json.loads(checkpoint.load(result.checkpoint)["config"])
    assert saved == config.model_dump(mode="json")
    best = min(rows, key=lambda row: row["val/nrmse_rollout"])
    assert result.best_val_nrmse == best["val/nrmse_rollout"]


# The end of an epoch, the start and the middle of one; the middle of one of pairs.
@pytest.mark.parametrize(("steps", "pairs"), [(8, None), (9, None), (10, None), (3, 40)])
def test_a_stopped_run_resumes_to_the_same_weights(
    prepared, stop_after, assert_same_weights, steps, pairs
):
    overrides = {"training__pairs_per_step": pairs}
    config, latents, whole = prepared("whole", **overrides)
    train(config, latents, whole)
    config, latents, halves = prepared("halves", **overrides)
    with pytest.raises(Interrupted):
        train(config, latents, halves, stop=stop_after(latents.train, steps))
    assert checkpoint.load(halves / "checkpoints/last.pt")["position"]["step"] == steps
    config, latents, halves = prepared("halves", **overrides)
    result = train(config, latents, halves)
    assert result.resumed_from_step == steps
    assert_same_weights(whole, halves)
    for name in ("train/loss", "train/lr"):
        one, other = ([row[name] for row in read_metrics(d).epochs] for d in (whole, halves))
        assert one == pytest.approx(other, rel=1e-6)  # the loss is summed in two parts


def test_sigterm_lets_the_step_end_leaves_a_checkpoint_and_is_delivered(prepared):
    config, latents, run_dir = prepared()

    class Terminated(BaseException):
        pass

    def terminate(*_):
        raise Terminated

    def terminate_me(_):
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        with pytest.raises(Terminated):
            train(
                config,
                latents,
                run_dir,
                on_first_step=lambda _: signal.raise_signal(signal.SIGTERM),
            )
        assert signal.getsignal(signal.SIGTERM) is terminate
    finally:
        signal.signal(signal.SIGTERM, before)
    assert checkpoint.load(run_dir / "checkpoints/last.pt")["position"]["step"] == 1


def test_a_made_up_step_leaves_no_trace(prepared, assert_same_weights):
    config, latents, cold = prepared("cold")
    train(config, latents, cold)
    config, latents, warm = prepared("warm")
    step = TrainStep(config)
    step.take_made_up_step()
    train(config, latents, warm, step=step)
    assert_same_weights(cold, warm)


EXACT = {"training__latent_cache_dtype": "float32"}
HALVED = {"training__batch_size": 5, "training__accumulation_steps": 2}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (EXACT, {**EXACT, "features__preload": "disk"}),
        (EXACT, {**EXACT, "features__preload": "off"}),
        ({"training__batch_size": 10}, HALVED),
    ],
    ids=["from disk", "on demand", "accumulated"],
)
def test_neither_the_tier_nor_accumulating_a_batch_changes_what_is_trained(prepared, one, other):
    weights = []
    for folder, overrides in (("one", one), ("other", other)):
        config, latents, run_dir = prepared(folder, **overrides)
        train(config, latents, run_dir)
        weights.append(checkpoint.load(run_dir / "checkpoints/last.pt")["model"]["head.weight"])
    assert torch.allclose(*weights, atol=1e-5)


def test_a_longer_horizon_trains_through_fed_back_predictions(prepared):
    config, latents, run_dir = prepared(training__rollout_horizon=3)
    assert train(config, latents, run_dir).num_steps == 12


def test_training_ends_after_the_steps_it_may_take_and_is_scored(prepared):
    config, latents, run_dir = prepared(stages__operator__max_steps=6)  # of 12, 4 an epoch
    result = train(config, latents, run_dir)
    assert result.num_steps == 6
    assert result.num_epochs == 2
    assert result.checkpoint.exists()
    assert train(config, latents, run_dir).num_steps == 6


def test_patience_ends_training_early(prepared):
    impatient = {"patience": 2, "epochs": 50, "optimizer__lr": 1e-12}
    config, latents, run_dir = prepared(
        **{f"stages__operator__{k}": v for k, v in impatient.items()}
    )
    result = train(config, latents, run_dir)
    assert result.num_epochs == result.best_epoch + 2 < 50


def test_a_loss_that_is_not_finite_ends_the_run(prepared):
    config, latents, run_dir = prepared()
    latents.train.z_NTKD[:] = float("nan")
    with pytest.raises(TrainingDiverged, match="the training loss is nan"):
        train(config, latents, run_dir)


def test_a_new_run_goes_on_from_a_checkpoint_when_told(prepared):
    config, latents, first = prepared("first")
    done = train(config, latents, first)
    config, latents, second = prepared("second", stages__operator__epochs=5)
    result = train(config, latents, second, resume=first / "checkpoints/last.pt")
    assert result.resumed_from_step == done.num_steps
    assert result.num_epochs == 5
    assert result.best_epoch > 3  # of its own epochs, whose weights it has
    assert checkpoint.load(result.checkpoint)["position"]["epoch"] == result.best_epoch


def test_a_checkpoint_of_another_model_or_a_damaged_one_is_refused(prepared):
    config, latents, first = prepared("first")
    train(config, latents, first)
    last = first / "checkpoints/last.pt"
    config, latents, second = prepared("second", operator__hidden_dim=64)
    with pytest.raises(CheckpointError, match=r"hidden_dim \d+ \(this run: 64\): resume"):
        train(config, latents, second, resume=last)
    last.write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="not a checkpoint that can be read"):
        train(config, latents, second, resume=last)


def test_every_epoch_and_seed_has_its_own_order_of_all_trajectories(prepared):
    config, latents, _ = prepared()
    orders = [epoch_order(latents.train, config, epoch) for epoch in range(2)]
    orders.append(epoch_order(latents.train, prepared(training__seed=1)[0], 0))
    assert len({tuple(order.tolist()) for order in orders}) == 3
    assert all(sorted(order.tolist()) == list(range(20)) for order in orders)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the message is for machines without CUDA")
def test_cuda_that_is_not_there_is_refused(tiny_config):
    with pytest.raises(DeviceError, match="found cuda, but torch sees no CUDA device"):
        TrainStep(tiny_config(training__device="cuda"))


def test_a_cuda_graph_on_the_cpu_is_refused(tiny_config):
    with pytest.raises(DeviceError, match="expected off or inductor"):
        TrainStep(tiny_config(training__device="cpu", training__compile="graph"))


def test_scores_are_in_field_units_beside_persistence(prepared, stage_all):
    config, latents, run_dir = prepared(stages__operator__epochs=6, evaluation__num_examples=1)
    result = train(config, latents, run_dir)
    test = {"burgers1d": stage_all(config)["test"]}
    scores = evaluate(config, result.checkpoint, test, latents.encoders, run_dir)
    assert scores.num_trajectories == 6
    assert scores.rollout["nRMSE"] < scores.persistence_rollout["nRMSE"]
    assert scores.reconstruction_nrmse < 0.1
    assert scores.picture.stat().st_size > 10_000
    saved = json.loads((run_dir / "scores.json").read_text())
    assert saved["rollout"]["nRMSE"] == scores.rollout["nRMSE"]


def test_a_rollout_that_always_diverges_fails_and_still_leaves_a_checkpoint(prepared):
    config, latents, run_dir = prepared()
    latents.val.z_NTKD[3:] = float("inf")
    with pytest.raises(TrainingDiverged, match=r"not finite in any epoch.* from trajectory 3 on"):
        train(config, latents, run_dir)
    assert checkpoint.load(run_dir / "checkpoints/best.pt")["position"]["epoch"] == 1
    assert [row["val/nrmse_rollout"] for row in read_metrics(run_dir).epochs] == [None] * 3


def test_a_file_that_torch_or_matplotlib_cannot_write_is_named_and_not_left_in_part(
    tiny_config, small_disk
):
    large = torch.zeros(1 << 18)
    picture = (
        small_disk / "of.png",
        [(large.view(512, -1),) * 2],
        large.view(512, -1).numpy(),
        1,
        1,
    )
    with pytest.raises(OSError, match=r"No space left on device: .*/last\.pt"):
        checkpoint.save(small_disk / "last.pt", tiny_config(), {"weights": large})
    (small_disk / "of-another").write_bytes(bytes(560 << 10))
    with pytest.raises(OSError, match=r"No space left on device: .*/of\.png"):
        draw_prediction(*picture)
    assert [path.name for path in small_disk.iterdir()] == ["of-another"]


@pytest.mark.parametrize(
    ("is_filled", "file"), [(False, "checkpoints/best.pt"), (True, "metrics.jsonl")]
)
def test_a_disk_that_fills_while_training_fails_the_run_with_the_remedy_and_a_record(
    prepared, small_disk, is_filled, file
):
    """There is room for all but a checkpoint; or, once the first step is done, for nothing."""
    config, latents, _ = prepared(runs_dir=str(small_disk), stages__operator__epochs=1)
    run = RunState(config, open_run_dir(config, "mine"))

    def fill(_at):
        with suppress(OSError), (small_disk / "of-another").open("wb", buffering=0) as other:
            while is_filled:
                other.write(bytes(1024))

    remedy = "No space left on device: make room there, or name a folder on another disk"
    with pytest.raises(DiskFull, match=remedy) as full, running(run, lambda: None):
        train(config, latents, run.run_dir, on_first_step=fill)
    assert str(full.value).startswith(f"{run.run_dir / file}: ")
    info = RunInfo.load(run.run_dir)
    assert (info.state, info.error) == ("failed", f"DiskFull: {full.value}")
    left = {path.name for path in run.run_dir.rglob("*") if path.is_file()}
    assert left - {"metrics.jsonl"} == {"config.yaml", "run.json", "run.log"}


def test_a_val_trajectory_that_is_zero_is_named_once_and_the_best_is_picked_by_the_others(
    prepared, caplog
):
    config, latents, run_dir = prepared()
    latents.val.z_NTKD[2] = 0
    step = TrainStep(config)
    result = train(config, latents, run_dir, step=step)
    found = [row["val/nrmse_rollout"] for row in read_metrics(run_dir).epochs]
    assert result.best_val_nrmse == min(found)
    (warned,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warned.endswith("are left out of its mean: trajectory 2 (10 of 10 frames)")
    latents.val.z_NTKD[2] = latents.val.z_NTKD[4]
    latents.val_ranges = {"burgers1d": range(4)}
    others = validate(step, latents, config, lambda: False)
    assert found[-1] == pytest.approx(others.mean)


def test_a_large_checkpoint_is_written_beside_training_as_it_was_when_it_was_taken(
    prepared, stop_after, assert_same_weights, monkeypatch
):
    config, latents, whole = prepared("whole")
    train(config, latents, whole)
    write, written = checkpoint.write, []

    def late(taken, *paths):
        before = digest(taken.record["model"])
        time.sleep(0.1)  # in which steps are taken
        written.append(before == digest(taken.record["model"]))
        write(taken, *paths)

    def digest(weights):
        return sum(weight.double().abs().sum().item() for weight in weights.values())

    monkeypatch.setattr(checkpoint, "write", late)
    monkeypatch.setattr(saving, "LARGE_BYTES", 0)
    config, latents, halves = prepared("halves")
    with pytest.raises(Interrupted):
        train(config, latents, halves, stop=stop_after(latents.train, 6))
    assert checkpoint.load(halves / "checkpoints/last.pt")["position"]["step"] == 6
    config, latents, halves = prepared("halves")
    assert train(config, latents, halves).resumed_from_step == 6
    assert_same_weights(whole, halves)
    assert written == [True] * 4


@pytest.mark.parametrize("large_bytes", [0, 1 << 40])
def test_a_checkpoint_that_cannot_be_written_ends_the_run(prepared, monkeypatch, large_bytes):
    monkeypatch.setattr(saving, "LARGE_BYTES", large_bytes)
    config, latents, run_dir = prepared()
    (run_dir / "checkpoints").touch()
    with pytest.raises(FileExistsError, match="checkpoints"):
        train(config, latents, run_dir)


def test_the_best_epoch_that_is_the_last_is_written_once(prepared):
    config, latents, run_dir = prepared(stages__operator__epochs=1)
    best = train(config, latents, run_dir).checkpoint
    assert best.samefile(best.with_name("last.pt"))


def test_a_stop_during_validation_takes_effect_between_its_batches(prepared, stop_after):
    config, latents, whole = prepared("whole", evaluation__batch_size=1)
    train(config, latents, whole)
    config, latents, run_dir = prepared(evaluation__batch_size=1)
    with pytest.raises(Interrupted):
        train(config, latents, run_dir, stop=stop_after(latents.val, 1))
    assert checkpoint.load(run_dir / "checkpoints/last.pt")["position"]["step"] == 4
    train(*prepared(evaluation__batch_size=1))  # its first epoch ends without another step
    one, other = ([row["train/lr"] for row in read_metrics(d).epochs] for d in (whole, run_dir))
    assert one == other
    assert one[0] > one[1] > one[2] > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 2.0**-7)])
@pytest.mark.parametrize("preload", ["gpu", "ram"])
def test_a_cuda_graph_takes_the_steps_that_eager_takes(prepared, preload, precision, tolerance):
    curves = {}
    for mode in ("off", "graph"):
        config, latents, _ = prepared(
            training__device="cuda",
            training__precision=precision,
            training__compile=mode,
            training__batch_size=8,  # of 20: the last batch of an epoch is a smaller one
            features__preload=preload,
        )
        step = TrainStep(config)
        step.warm_up()
        curves[mode] = loss_curve(step, latents.train, 50)
    assert curves["graph"] == pytest.approx(curves["off"], rel=tolerance)


def loss_curve(step, data, num_steps):
    """The loss of each of the first steps."""
    losses = []
    with step.on_stream():
        step.begin(data, num_steps)
        while len(losses) < num_steps:
            step.begin_epoch(epoch_order(data, step.config, len(losses)))
            for _ in range(-(-len(data) // step.items_per_step)):
                step()
                losses.append(step.loss_sum.item())
                step.loss_sum.zero_()
    return losses[:num_steps]


def test_a_run_stopped_before_its_first_step_is_not_a_finished_one(prepared):
    config, latents, run_dir = prepared()
    stop = threading.Event()
    stop.set()
    with pytest.raises(Interrupted):
        train(config, latents, run_dir, stop=stop)
    assert train(config, latents, run_dir).num_steps == 12


def test_small_steps_are_trained_by_one_thread_and_all_are_there_afterwards(prepared):
    config, latents, run_dir = prepared(training__log_every=1)
    before, taken = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        train(config, latents, run_dir, progress=lambda *_: taken.append(torch.get_num_threads()))
        assert torch.get_num_threads() == min(2, num_cores())
    finally:
        torch.set_num_threads(before)
    assert set(taken) == {1}


def test_what_training_has_come_to_is_said_once_its_first_epoch_is_over(prepared):
    config, latents, run_dir = prepared()
    said, steps = [], []
    count = {"progress": lambda *numbers: steps.append(numbers)}
    done = train(config, latents, run_dir, on_first_epoch=said.append, **count)
    (after,) = said
    per_epoch = done.num_steps // done.num_epochs
    assert (after.num_epochs, after.num_steps, after.best_epoch) == (1, per_epoch, 1)
    assert after.first_epoch == done.first_epoch
    assert after.first_step_at == done.first_step_at
    assert (steps[0], steps[-1]) == ((1, done.num_steps), (done.num_steps, done.num_steps))
