"""The device that is asked for, and the checkpoint to go on from."""

import os
import re
import shutil
from pathlib import Path

import pytest
import torch

from ups.pipeline.phases import build_cache, load_latents
from ups.training.loop import train
from ups.validate import training as training_checks
from ups.validate.training import validate_checkpoint, validate_device, validate_device_early


@pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without CUDA")
@pytest.mark.parametrize(("asked", "status"), [("auto", "ok"), ("cuda", "fault")])
def test_cuda_without_a_gpu_is_a_fault_and_else_the_rest_goes_on_with_the_cpu(
    tiny_config, asked, status
):
    ((found, *_), device) = validate_device(tiny_config(training__device=asked))
    assert (found.status, device) == (status, "cpu")
    assert re.search("torch.* sees no CUDA device", found.text)


def test_the_cpu_is_named_and_a_cuda_graph_on_it_is_a_fault(tiny_config):
    checks, device = validate_device(tiny_config(training__device="cpu"))
    assert ([c.text for c in checks], device) == (["cpu"], "cpu")
    config = tiny_config(training__device="cpu", training__compile="graph")
    checks, _ = validate_device(config)
    assert [(c.name, c.status) for c in checks] == [("device", "ok"), ("compile", "fault")]
    assert [c.name for c in validate_device_early(config) if c.status == "fault"] == ["compile"]


def test_at_the_head_a_gpu_is_left_to_the_warm_up_where_there_is_one(tiny_config, monkeypatch):
    config = tiny_config(training__device="cuda")
    monkeypatch.setattr(training_checks, "has_gpu_node", lambda: True)
    (check,) = validate_device_early(config)
    assert check.status == "skip"
    without = tiny_config(training__device="cuda", features__warm_up=False)
    if not torch.cuda.is_available():  # nobody else would find out before the download
        assert validate_device_early(without)[0].status == "fault"


@pytest.fixture
def checkpoint(tiny_config, stage_all, tmp_path) -> Path:
    """Of a real run of one step."""
    config = tiny_config(stages__operator__max_steps=1)
    sources = stage_all(config)
    latents = load_latents(
        config, {"burgers1d": sources}, {"burgers1d": build_cache(config, sources)}
    )
    train(config, latents, tmp_path / "run")
    latents.close()
    return tmp_path / "run" / "checkpoints" / "last.pt"


def test_a_checkpoint_is_looked_at_in_each_state_it_can_be_in(tiny_config, checkpoint, tmp_path):
    none, text, cut, tensor = (
        tmp_path / f"{name}.pt" for name in ("none", "text", "cut", "tensor")
    )
    text.write_text("no checkpoint")
    shutil.copy(checkpoint, cut)
    os.truncate(cut, checkpoint.stat().st_size // 2)
    torch.save(torch.zeros(3), tensor)
    own, other = tiny_config(), tiny_config(latent__dim=8)
    for config, path, status, message in (
        (own, None, "skip", "none is named"),
        (own, checkpoint, "ok", "epoch 1, step 1, of this model"),
        (
            other,
            checkpoint,
            "fault",
            "was trained with latent {'dim': 16}, and this run has {'dim': 8}",
        ),
        (own, none, "fault", f"no checkpoint {none}"),
        (own, text, "fault", "is not a checkpoint that can be read"),
        (own, cut, "fault", "is not a checkpoint that can be read"),
        (own, tensor, "fault", "has format None"),
    ):
        (found,) = validate_checkpoint(config, path, [])
        assert found.status == status
        assert message in found.text
