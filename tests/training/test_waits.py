"""How often the host waits for the device: never for a step, a few times for an epoch."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ups.config import load_config
from ups.latents.tiers import GPU_RESERVE_BYTES
from ups.training import checkpoint
from ups.training.loop import train
from ups.training.step import TrainStep, epoch_order
from ups.training.validation import batch_size, validate

# Operations whose result the host has to know: on a GPU each waits until all before it is done.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero"}

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


class Waits(TorchDispatchMode):
    """Names the waiting operations of the code inside, on whatever device it runs."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().removeprefix("aten::").partition(".")[0]
        if name in WAITING:
            self.names.append(name)
        return function(*args, **(kwargs or {}))


def take_epochs(step, latents, config, num):
    step.begin(latents.train, 100)
    for epoch in range(num):
        step.begin_epoch(epoch_order(latents.train, config, epoch))
        for _ in range(-(-len(latents.train) // step.items_per_step)):
            step()


def test_the_host_waits_for_no_step(prepared, of_kind):
    config, latents, _ = prepared(**of_kind, features__preload="ram")
    step = TrainStep(config)
    with Waits() as waits:
        take_epochs(step, latents, config, 2)
        assert waits.names == []
        step.loss_sum.item()
    assert waits.names == ["_local_scalar_dense"]


def test_validation_that_is_stopped_between_two_batches_has_no_score(prepared):
    config, latents, _ = prepared(evaluation__batch_size=2)
    step, asked = TrainStep(config), iter([False, True])
    assert validate(step, latents, config, lambda: next(asked)) is None
    assert validate(step, latents, config, lambda: False).mean > 0


def test_the_host_waits_as_often_for_an_epoch_of_many_steps_and_batches_as_for_one_of_few(prepared):
    found = {}
    for batch in (2, 10):
        changes = {"training__batch_size": batch, "evaluation__batch_size": batch // 2}
        changes |= {"features__preload": "ram"}
        for epochs in (2, 3):
            of_run = f"{batch}-{epochs}"
            config, latents, run_dir = prepared(of_run, **changes, stages__operator__epochs=epochs)
            with Waits() as waits:
                train(config, latents, run_dir)
            found[batch, epochs] = len(waits.names)
    assert found[2, 2] == found[10, 2]
    assert found[2, 3] - found[2, 2] == found[10, 3] - found[10, 2] <= 5


def test_a_gpu_rolls_out_more_trajectories_at_once_and_a_cpu_as_many_as_the_config_says():
    config = load_config("train_burgers_pdebench")
    assert batch_size(config, 101, "cpu") == config.evaluation.batch_size == 32
    at_once = batch_size(config, 101, "cuda")
    assert math.ceil(1000 / at_once) == 7
    of_unet = 32 * at_once * 101 * 32 * 32 * 4
    assert 0.4 * GPU_RESERVE_BYTES < of_unet < 0.6 * GPU_RESERVE_BYTES
    assert batch_size(config, 100_000, "cuda") == 32


def test_the_score_of_val_depends_on_the_batch_in_its_last_digits_alone(prepared):
    found = {}
    for at_once in (1, 2, 5):
        config, latents, _ = prepared(evaluation__batch_size=at_once)
        step = TrainStep(config)
        generator = torch.Generator().manual_seed(0)
        for weight in step.ema.parameters():
            weight.data += 0.02 * torch.randn(weight.shape, generator=generator)
        found[at_once] = validate(step, latents, config, lambda: False).mean
    assert found[1] == pytest.approx(found[5], rel=1e-5)
    assert found[2] == pytest.approx(found[5], rel=1e-5)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("compiled", ["off", "graph"])
def test_on_a_gpu_neither_steps_nor_the_copy_of_a_checkpoint_wait(prepared, compiled, tmp_path):
    on_gpu = {"training__device": "cuda", "training__compile": compiled, "features__preload": "gpu"}
    config, latents, _ = prepared(**on_gpu)
    step = TrainStep(config)
    step.warm_up()
    with step.on_stream():
        step.begin(latents.train, 100)
        step.begin_epoch(epoch_order(latents.train, config, 0))
        num = len(latents.train) // step.items_per_step
        try:
            torch.cuda.set_sync_debug_mode("error")
            for _ in range(num):
                step()
            taken = checkpoint.snapshot(config, step.state_dict())
        finally:
            torch.cuda.set_sync_debug_mode("default")
        expected = {name: weight.cpu() for name, weight in step.model.state_dict().items()}
        checkpoint.write(taken, tmp_path / "taken.pt")
    saved = checkpoint.load(tmp_path / "taken.pt")["model"]
    assert all(torch.equal(weight, saved[name]) for name, weight in expected.items())


@pytest.mark.gpu
@needs_cuda
def test_on_a_gpu_val_has_the_score_that_a_cpu_gives_it(prepared):
    scores = []
    for device in ("cpu", "cuda"):
        config, latents, _ = prepared(training__device=device, training__precision="fp32")
        step = TrainStep(config)
        step.load_state_dict(TrainStep(prepared(training__device="cpu")[0]).state_dict())
        scores.append(validate(step, latents, config, lambda: False).mean)
    assert scores[1] == pytest.approx(scores[0], rel=1e-3)
