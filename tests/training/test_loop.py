"""Training: it learns, resumes to the bit, stops cleanly, and refuses what cannot go on."""

import json
import os
import signal
import threading

import pytest
import torch

from ups.device import training_device
from ups.errors import CheckpointError, DeviceError, Interrupted, TrainingDiverged
from ups.latents.build import ensure
from ups.latents.loader import load
from ups.training import checkpoint
from ups.training.evaluate import evaluate
from ups.training.loop import epoch_order, train
from ups.training.step import TrainStep


@pytest.fixture
def prepared(tiny_config, stage_all, tmp_path):
    """`prepared(**overrides)`: a config, its latents and a new run folder."""

    def make(folder="run", **overrides):
        config = tiny_config(**overrides)
        sources = stage_all(config)
        device = training_device(config)
        entries = {"burgers1d": ensure(config, sources)}
        latents = load(config, entries, {"burgers1d": sources}, device=device)
        run_dir = tmp_path / folder
        run_dir.mkdir(exist_ok=True)
        return config, latents, run_dir

    return make


def weights(path):
    record = checkpoint.load(path)
    return {**record["model"], **{f"ema.{k}": v for k, v in record["ema"].items()}}


def assert_same_weights(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_training_lowers_the_loss_and_leaves_a_record(prepared):
    config, latents, run_dir = prepared(stages__operator__epochs=8)
    first_steps = []
    result = train(config, latents, run_dir, on_first_step=first_steps.append)
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, 9))
    assert rows[-1]["train/loss"] < 0.7 * rows[0]["train/loss"]
    assert result.num_steps == 32
    assert first_steps == [result.first_step_at]
    assert result.checkpoint.exists()
    best = min(rows, key=lambda row: row["val/nrmse_rollout"])
    assert result.best_val_nrmse == best["val/nrmse_rollout"]


def stop_after(latents, count):
    """An event that is set while the batch of the step `count` is fetched."""
    stop, real, fetched = threading.Event(), latents.train.batch, []

    def fetch(index_B):
        fetched.append(index_B)
        if len(fetched) == count:
            stop.set()
        return real(index_B)

    latents.train.batch = fetch
    return stop


@pytest.mark.parametrize(
    "steps", [8, 9, 10]
)  # the end of an epoch, the start and the middle of one
def test_a_stopped_run_resumes_to_the_same_weights(prepared, steps):
    config, latents, whole = prepared("whole")
    train(config, latents, whole)
    config, latents, halves = prepared("halves")
    with pytest.raises(Interrupted):
        train(config, latents, halves, stop=stop_after(latents, steps))
    assert checkpoint.load(halves / "checkpoints/last.pt")["position"]["step"] == steps
    config, latents, halves = prepared("halves")
    result = train(config, latents, halves)
    assert result.resumed_from_step == steps
    assert_same_weights(
        weights(whole / "checkpoints/last.pt"), weights(halves / "checkpoints/last.pt")
    )
    losses = [
        [json.loads(line)["train/loss"] for line in (d / "metrics.jsonl").read_text().splitlines()]
        for d in (whole, halves)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)  # summed in two parts


def test_sigterm_lets_the_step_end_leaves_a_checkpoint_and_is_delivered(prepared):
    config, latents, run_dir = prepared()

    class Terminated(BaseException):
        pass

    def terminate(*_):
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        with pytest.raises(Terminated):
            train(
                config,
                latents,
                run_dir,
                on_first_step=lambda _: os.kill(os.getpid(), signal.SIGTERM),
            )
        assert signal.getsignal(signal.SIGTERM) is terminate
    finally:
        signal.signal(signal.SIGTERM, before)
    assert checkpoint.load(run_dir / "checkpoints/last.pt")["position"]["step"] == 1


def test_a_made_up_step_leaves_no_trace(prepared):
    config, latents, cold = prepared("cold")
    train(config, latents, cold)
    config, latents, warm = prepared("warm")
    step = TrainStep(config)
    step.take_made_up_step()
    train(config, latents, warm, step=step)
    assert_same_weights(
        weights(cold / "checkpoints/last.pt"), weights(warm / "checkpoints/last.pt")
    )


@pytest.mark.parametrize("preload", ["disk", "off"])
def test_the_tier_does_not_change_what_is_trained(prepared, stage_all, preload):
    from ups.pipeline import build_cache, load_latents

    exact = {"training__latent_cache_dtype": "float32"}
    config, latents, ram = prepared("ram", **exact)
    train(config, latents, ram)
    config, _, other = prepared("other", features__preload=preload, **exact)
    sources = stage_all(config)
    entries = None if preload == "off" else {"burgers1d": build_cache(config, sources)}
    train(config, load_latents(config, {"burgers1d": sources}, entries), other)
    first, second = (weights(d / "checkpoints/last.pt")["head.weight"] for d in (ram, other))
    assert torch.allclose(first, second, atol=1e-5)


def test_accumulated_batches_are_one_large_batch(prepared):
    config, latents, large = prepared("large", training__batch_size=10)
    train(config, latents, large)
    config, latents, small = prepared(
        "small", training__batch_size=5, training__accumulation_steps=2
    )
    train(config, latents, small)
    first, second = (weights(d / "checkpoints/last.pt")["head.weight"] for d in (large, small))
    assert torch.allclose(first, second, atol=1e-5)


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
    config, latents, run_dir = prepared(
        stages__operator__epochs=50,
        stages__operator__patience=1,
        stages__operator__optimizer__lr=1e-12,
    )
    assert train(config, latents, run_dir).num_epochs < 50


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


def test_resuming_another_model_is_refused(prepared):
    config, latents, first = prepared("first")
    train(config, latents, first)
    config, latents, second = prepared("second", operator__hidden_dim=64)
    with pytest.raises(CheckpointError, match="was trained with operator .*64"):
        train(config, latents, second, resume=first / "checkpoints/last.pt")


def test_a_damaged_checkpoint_is_refused(tmp_path):
    path = tmp_path / "last.pt"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="not a checkpoint that can be read"):
        checkpoint.load(path)


def test_the_checkpoint_holds_the_config(prepared):
    config, latents, run_dir = prepared()
    result = train(config, latents, run_dir)
    saved = json.loads(checkpoint.load(result.checkpoint)["config"])
    assert saved == config.model_dump(mode="json")


def test_every_epoch_has_its_own_order_of_all_trajectories(prepared):
    config, latents, _ = prepared()
    orders = [epoch_order(latents.train, config, epoch) for epoch in range(2)]
    assert not torch.equal(*orders)
    assert all(sorted(order.tolist()) == list(range(20)) for order in orders)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the message is for machines without CUDA")
def test_cuda_that_is_not_there_is_refused(tiny_config):
    with pytest.raises(DeviceError, match="found cuda, but torch sees no CUDA device"):
        TrainStep(tiny_config(training__device="cuda"))


def test_a_cuda_graph_on_the_cpu_is_refused(tiny_config):
    with pytest.raises(DeviceError, match="expected off or inductor"):
        TrainStep(tiny_config(training__device="cpu", training__compile="graph"))


def test_scores_are_in_field_units_beside_persistence(prepared, stage_all):
    config, latents, run_dir = prepared(stages__operator__epochs=6)
    result = train(config, latents, run_dir)
    test = {"burgers1d": stage_all(config)["test"]}
    scores = evaluate(config, result.checkpoint, test, latents.encoders, run_dir)
    assert scores.num_trajectories == 6
    assert scores.rollout["nRMSE"] < scores.persistence_rollout["nRMSE"]
    assert scores.reconstruction_nrmse < 0.1
    assert scores.picture.stat().st_size > 10_000
    saved = json.loads((run_dir / "scores.json").read_text())
    assert saved["rollout"]["nRMSE"] == scores.rollout["nRMSE"]


def test_a_rollout_that_always_diverges_still_leaves_a_checkpoint(prepared):
    config, latents, run_dir = prepared()
    latents.val.z_NTKD[:] = float("inf")
    result = train(config, latents, run_dir)
    assert result.best_epoch == 1
    assert result.checkpoint.exists()


def test_a_run_killed_with_sigkill_resumes_to_the_same_weights(prepared):
    config, latents, whole = prepared("whole")
    train(config, latents, whole)
    config, latents, killed = prepared("killed")
    pid = os.fork()
    if pid == 0:
        train(
            config,
            latents,
            killed,
            on_epoch=lambda row: row["epoch"] == 2 and os.kill(os.getpid(), signal.SIGKILL),
        )
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    result = train(config, latents, killed)
    assert result.resumed_from_step == 8
    assert_same_weights(
        weights(whole / "checkpoints/last.pt"), weights(killed / "checkpoints/last.pt")
    )
    rows = (killed / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["epoch"] for row in rows] == [1, 2, 3]


def test_a_stop_during_validation_takes_effect_between_its_batches(prepared):
    config, latents, run_dir = prepared(evaluation__batch_size=1)
    stop = threading.Event()
    real = latents.val.batch

    def stopping(index_B):
        stop.set()
        return real(index_B)

    latents.val.batch = stopping
    with pytest.raises(Interrupted):
        train(config, latents, run_dir, stop=stop)
    assert checkpoint.load(run_dir / "checkpoints/last.pt")["position"]["step"] == 4


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
            for _ in range(-(-len(data) // step.rows_per_step)):
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
