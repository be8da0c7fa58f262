"""The device that is asked for, and the checkpoint to go on from."""

import shutil
from pathlib import Path

import pytest
import torch

import ups.validate.device as device_checks
from ups.config import Parsed
from ups.training.loop import train
from ups.validate.checkpoint import validate_checkpoint
from ups.validate.device import validate_device, validate_device_early

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without CUDA")


def test_the_cpu_is_named_with_why(on_disk):
    checks, device = validate_device(on_disk(training__device="cpu"))
    assert ([c.text for c in checks], device) == (["cpu"], "cpu")


@no_gpu
def test_auto_without_a_gpu_says_that_torch_sees_none(on_disk):
    checks, device = validate_device(on_disk())
    assert device == "cpu"
    assert checks[0].status == "ok"
    assert "sees no CUDA device" in checks[0].text


@no_gpu
def test_cuda_without_a_gpu_is_a_fault_and_the_rest_goes_on_with_the_cpu(on_disk):
    checks, device = validate_device(on_disk(training__device="cuda"))
    assert device == "cpu"
    assert checks[0].status == "fault"
    assert "torch sees no CUDA device" in checks[0].text


def test_a_cuda_graph_on_a_cpu_is_a_fault(on_disk):
    parsed = on_disk(training__device="cpu", training__compile="graph")
    checks, _ = validate_device(parsed)
    assert [(c.name, c.status) for c in checks] == [("device", "ok"), ("compile", "fault")]
    assert [c.name for c in validate_device_early(parsed.config) if c.status == "fault"] == [
        "compile"
    ]


def test_at_the_head_a_gpu_is_left_to_the_warm_up_where_there_is_one(on_disk, monkeypatch):
    config = on_disk(training__device="cuda").config
    monkeypatch.setattr(device_checks, "has_gpu_node", lambda: True)
    (check,) = validate_device_early(config)
    assert check.status == "skip"
    without = on_disk(training__device="cuda", features__warm_up=False).config
    if not torch.cuda.is_available():  # nobody else would find out before the download
        assert validate_device_early(without)[0].status == "fault"


@pytest.fixture
def checkpoint(on_disk, stage_all, tmp_path) -> Path:
    """Of a real run of one step."""
    from ups.pipeline import build_cache, load_latents

    config = on_disk(stages__operator__max_steps=1).config
    sources = stage_all(config)
    latents = load_latents(
        config, {"burgers1d": sources}, {"burgers1d": build_cache(config, sources)}
    )
    train(config, latents, tmp_path / "run")
    latents.close()
    return tmp_path / "run" / "checkpoints" / "last.pt"


def resume(parsed, path):
    (check,) = validate_checkpoint(parsed, path)
    return check.status, check.text


def test_a_checkpoint_is_looked_at_in_each_state_it_can_be_in(on_disk, checkpoint, tmp_path):
    assert resume(on_disk(), None)[0] == "skip"
    status, text = resume(on_disk(), checkpoint)
    assert status == "ok"
    assert text.endswith("epoch 1, step 1, of this model")
    status, text = resume(on_disk(latent__dim=8), checkpoint)
    assert status == "fault"
    assert "was trained with latent {'dim': 16, 'tokens': 8}" in text
    assert resume(on_disk(), tmp_path / "none.pt") == (
        "fault",
        f"no checkpoint {tmp_path / 'none.pt'}",
    )
    (tmp_path / "text.pt").write_text("no checkpoint")
    status, text = resume(on_disk(), tmp_path / "text.pt")
    assert status == "fault"
    assert "is not a checkpoint that can be read" in text
    cut = tmp_path / "cut.pt"
    shutil.copy(checkpoint, cut)
    with cut.open("r+b") as file:
        file.truncate(checkpoint.stat().st_size // 2)
    assert resume(on_disk(), cut)[0] == "fault"
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    status, text = resume(on_disk(), tmp_path / "tensor.pt")
    assert status == "fault"
    assert "has format None" in text


def test_a_faulty_section_leaves_open_whether_a_checkpoint_fits(on_disk, checkpoint):
    parsed = Parsed("x", on_disk().config, faults=("latent: found 5",), replaced=("latent",))
    status, text = resume(parsed, checkpoint)
    assert status == "skip"
    assert "latent is faulty" in text
