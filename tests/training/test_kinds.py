"""Every kind of operator is trained, killed, resumed, scored and counted like any other."""

import json
import os
import re
import signal
import sys
from contextlib import closing
from types import ModuleType
from typing import Literal

import h5py
import pytest
import torch
from torch import nn

from ups.config import FNO, OPERATORS, OperatorSettings, RunConfig, load_config
from ups.config.operators import one_of
from ups.data.generate import generate
from ups.data.objectstore import ObjectStore
from ups.errors import MissingExtra, ValidationFailed
from ups.models.build import build_operator
from ups.training import checkpoint
from ups.training.evaluate import evaluate
from ups.training.loop import epoch_order, train
from ups.training.step import TrainStep
from ups.validate.memory import footprint
from ups.validate.run import require_valid


def test_a_run_killed_with_sigkill_resumes_to_the_same_weights_and_is_scored(
    prepared, of_kind, assert_same_weights, stage_all
):
    config, latents, whole = prepared("whole", **of_kind)
    train(config, latents, whole)
    config, latents, killed = prepared("killed", training__log_every=100, **of_kind)  # in an epoch

    def kill_at_8(step, _):
        if step == 8:
            os.kill(os.getpid(), signal.SIGKILL)

    if (pid := os.fork()) == 0:
        train(config, latents, killed, progress=kill_at_8)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    result = train(config, latents, killed)
    assert result.resumed_from_step == 8
    assert_same_weights(whole, killed)
    test = {"burgers1d": stage_all(config)["test"]}
    scores = evaluate(config, result.checkpoint, test, latents.encoders, killed)
    assert 0 < scores.rollout["nRMSE"] < scores.persistence_rollout["nRMSE"] * 2
    assert scores.one_step["nRMSE"] < scores.rollout["nRMSE"]
    if config.encoder.kind == "identity":
        assert scores.reconstruction_nrmse == 0


@pytest.mark.parametrize("horizon", [1, 2])
def test_what_it_takes_is_counted_as_a_real_step_keeps_it(tiny_config, of_kind, horizon):
    config = tiny_config(training__device="cpu", training__rollout_horizon=horizon, **of_kind)
    step, latent = TrainStep(config), config.latent
    weights = {p.untyped_storage().data_ptr() for p in step.model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    z_BTKD = torch.randn(6, 11, latent.tokens, latent.dim)  # 41 frames at stride 4
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = step._loss(z_BTKD, torch.zeros(6, 2))
    found = footprint(config, 41, "cpu")
    expected = sum(num_bytes for pointer, num_bytes in kept.items() if pointer not in weights)
    assert found.activation_bytes == pytest.approx(expected, rel=0.1)
    numbers = [torch.view_as_real(p) if p.is_complex() else p for p in step.model.parameters()]
    assert found.num_parameters == sum(p.numel() for p in numbers)
    groups = step.optimizer.state_dict().values()
    moments = [tensor for group in groups for k in ("mean", "square") for tensor in group[k]]
    tensors = [*step.model.parameters(), *step.ema.parameters(), *moments]
    gradients = sum(p.nbytes for p in step.model.parameters())
    assert found.state_bytes == gradients + sum(t.nbytes for t in tensors)
    assert footprint(config, 41, "cuda").activation_bytes <= found.activation_bytes * 1.1
    del loss


def test_history_and_conditioning_reach_a_step_and_samples_do_not_mix(tiny_config, of_kind):
    settings = {"kind": "latent_transformer", "hidden_dim": 32, "depths": [1]}
    settings = {**of_kind.get("operator", settings), "history": 3}
    config = tiny_config(**{**of_kind, "operator": settings})
    model, latent = build_operator(config), config.latent
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():  # leave the start, where a head may be zero
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    z_BHKD = torch.randn(2, 3, latent.tokens, latent.dim, generator=generator)
    condition_BC = torch.tensor([[0.0, 0.1], [1.0, 0.1]])
    with torch.no_grad():
        out_BKD = model(z_BHKD, condition_BC)
        assert out_BKD.shape == z_BHKD[:, -1].shape
        alone_BKD = model(z_BHKD[1:], condition_BC[1:])
        assert torch.allclose(out_BKD[1:], alone_BKD, atol=1e-5)
        assert not torch.allclose(model(z_BHKD[1:], condition_BC[:1]), alone_BKD, atol=1e-3)
        for frame in range(3):
            other = z_BHKD[1:].clone()
            other[:, frame] += 0.5
            assert not torch.allclose(model(other, condition_BC[1:]), alone_BKD, atol=1e-3)
        if config.operator.kind == "unet":  # its three levels halve the points twice
            shifted = model(z_BHKD.roll(4, 2), condition_BC)
            assert torch.allclose(shifted, out_BKD.roll(4, 1), atol=1e-5)


def test_weights_hold_nothing_but_tensors(tiny_config, of_kind):
    state = build_operator(tiny_config(**of_kind)).state_dict()
    assert all(isinstance(value, torch.Tensor) for value in state.values())


def test_a_library_that_is_missing_is_named_with_its_extra_before_a_run(
    tiny_config, ups_on, monkeypatch
):
    monkeypatch.setattr(FNO, "library", "neuralop_elsewhere")
    on_grid = {"encoder__kind": "identity", "latent__tokens": 256, "latent__dim": 1}
    config = tiny_config(operator={"kind": "fno"}, **on_grid)
    message = (
        "operator.kind: found fno, which needs neuralop_elsewhere, and that is not installed: "
        "pip install -e '.[neuralop_elsewhere]'"
    )
    with pytest.raises(MissingExtra, match=re.escape(message)):
        build_operator(config)
    with pytest.raises(ValidationFailed, match=re.escape(message)):
        require_valid(config)
    code, out, _ = ups_on(config)("validate", "CONFIG", "--json")
    faults = [check for check in json.loads(out)["checks"] if check["status"] == "fault"]
    assert (code, faults[0]["text"]) == (1, message)


@pytest.fixture(scope="session")
def as_pdebench(s3, tmp_path_factory):
    """Rows of one object in the layout of PDEBench's own files: ν is in the name alone."""
    key = "1D/Burgers/Train/1D_Burgers_Sols_Nu0.01.hdf5"
    path = tmp_path_factory.mktemp("pdebench") / "file.hdf5"
    generate(path, 13, "burgers1d", 0.01, seed=0, grid_points=64, num_frames=61, t_end=0.6)
    with h5py.File(path, "r+") as file:
        del file.attrs["Nu"]
    with s3.used(), closing(ObjectStore()) as store:
        store.upload(path, "protocol", key)
    return {
        split: [{"key": key, "bucket": "protocol", "rows": rows}]
        for split, rows in {"train": [5, 13], "val": [3, 5], "test": [0, 3]}.items()
    }


@pytest.mark.parametrize(
    ("kind", "small"),
    [
        ("", {"latent.tokens": 4, "latent.dim": 4, "operator.num_blocks": 1}),
        ("_fno", {"latent.tokens": 16, "operator.modes": 6, "operator.width": 4}),
    ],
)
def test_pdebenchs_protocol_runs_on_a_file_of_its_layout(
    as_pdebench, store_env, tmp_path, ups_on, kind, small
):
    overrides = {
        **small,
        "runs_dir": str(tmp_path / "runs"),
        "data.root": str(tmp_path / "data"),
        "data.sources": as_pdebench,
        "data.grid_points": 64,
        "training.latent_cache_dir": str(tmp_path / "cache"),
        "stages.operator.max_steps": 2,
        "evaluation.num_examples": 1,
    }
    config = load_config(f"pdebench_protocol_nu0.001{kind}", overrides)
    assert config.encoded_points == 16
    code, _, errors = ups_on(config)("train", "CONFIG")
    assert code == 0, errors
    (path,) = (tmp_path / "runs").glob("*/scores.json")
    scores = json.loads(path.read_text())
    assert scores["num_trajectories"] == 3
    assert scores["step_dt"] == pytest.approx(0.05)
    times = scores["rollout_over_time"]["time"]
    assert times == pytest.approx([0.5, 0.55, 0.6])  # 13 frames, of which 10 are given
    assert scores["pdebench"]["RMSE"] == pytest.approx(scores["rollout"]["RMSE"] * 3 / 13)
    assert scores["reconstruction_nrmse"] < 1e-6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_cuda_graph_takes_the_steps_that_eager_takes(prepared, of_kind):
    losses = {}
    for mode in ("off", "graph"):
        on_gpu = {"training__device": "cuda", "training__compile": mode}
        config, latents, _ = prepared(**of_kind, **on_gpu)
        step = TrainStep(config)
        step.warm_up()
        with step.on_stream():
            step.begin(latents.train, 8)
            for epoch in range(2):
                step.begin_epoch(epoch_order(latents.train, config, epoch))
                for _ in range(4):
                    step()
            losses[mode] = step.loss_sum.item()
    assert losses["graph"] == pytest.approx(losses["off"], rel=2.0**-7)


class Damped(OperatorSettings):
    """A kind that this file adds: each frame is a multiple of the one before."""

    kind: Literal["damped"] = "damped"
    start: float = 1.0


class DampedOperator(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor([config.operator.start]))

    def forward(self, z_BHKD, _):
        return self.factor * z_BHKD[:, -1]


class OneKindMore(RunConfig):
    operator: one_of({**OPERATORS, "damped": Damped}) = Damped()


def test_a_kind_is_added_by_its_settings_and_one_module(prepared, monkeypatch):
    module = ModuleType("ups.models.damped")
    module.Operator = DampedOperator
    monkeypatch.setitem(sys.modules, module.__name__, module)
    config, latents, run_dir = prepared(stages__operator__optimizer__lr=0.1)
    tree = {**config.model_dump(mode="json"), "operator": {"kind": "damped", "start": 0.9}}
    config = OneKindMore.model_validate(tree)
    assert isinstance(build_operator(config), DampedOperator)
    result = train(config, latents, run_dir)
    (factor,) = checkpoint.load(result.checkpoint)["ema"].values()
    assert 0 < factor.item() != pytest.approx(0.9, abs=1e-3)
