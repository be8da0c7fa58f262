"""An operator predicts from its checkpoint alone, and says what it does not take."""

import math
import os
import re
import shutil
import subprocess
import sys
import textwrap

import h5py
import numpy as np
import pytest
import torch

import ups
from ups.config import load_config
from ups.errors import CheckpointError, DataError, DeviceError, InputError, ShapeError
from ups.latents.build import ensure
from ups.latents.encode import PatchEncoder
from ups.latents.store import generation_dir, list_entries, write_manifest
from ups.models.build import build_operator
from ups.training import checkpoint
from ups.training.step import rollout

NU, STEP = 0.02, 0.04  # of the tiny data, every 4th of whose frames 0.01 apart is a step


@pytest.fixture
def operator(tiny_config, saved):
    return ups.load(saved(tiny_config()))


@pytest.fixture
def u0(tiny_data):
    with h5py.File(tiny_data / "burgers1d_test.h5") as file:
        return file["tensor"][:, 0]


def test_what_is_predicted_is_the_rollout_of_the_averaged_model(tiny_config, saved, u0):
    path = saved(tiny_config())
    record = checkpoint.load(path)
    encoder = PatchEncoder.from_manifest(record["trained_on"]["burgers1d"]["encoder"])
    model = build_operator(tiny_config())
    model.load_state_dict(record["ema"])
    told = torch.tensor([[math.log10(NU) / 2 + 1, math.log10(STEP) + 1]]).expand(len(u0), 2)
    with torch.no_grad():
        z = rollout(model, encoder.encode(torch.from_numpy(u0))[:, None], told, 3)
    expected = encoder.decode(z).numpy()
    operator = ups.load(path)
    found = operator.predict(u0, nu=NU, steps=3)
    assert (found.shape, found.dtype) == ((6, 3, 256), np.float32)
    assert found == pytest.approx(expected, abs=1e-6)
    late_first = operator.predict(u0, nu=NU, times=[0.12, 0, 0.04], batch_size=4)
    assert late_first == pytest.approx(np.stack([expected[:, 2], u0, expected[:, 0]], 1), abs=1e-6)
    assert operator.predict(u0[1], nu=NU, times=0.08) == pytest.approx(expected[1, 1:2], abs=1e-6)
    changed = np.where(np.arange(6) == 2, 0.1, NU)
    of_each = operator.predict(u0, nu=changed, steps=3)
    same = np.abs(of_each - found).max((1, 2)) < 1e-6
    assert same.tolist() == [True, True, False, True, True, True]


@pytest.mark.parametrize(
    "convert",
    [
        lambda u: u,
        lambda u: u.astype("float64")[:, ::-1],
        lambda u: u.astype(">f4"),
        torch.from_numpy,
        lambda u: torch.from_numpy(u).double().requires_grad_(),
    ],
    ids=["NumPy", "float64 backwards", "big-endian", "torch", "torch float64 with gradient"],
)
def test_what_comes_back_is_of_the_kind_that_was_given(operator, u0, convert):
    given = convert(u0)
    found = operator.predict(given, nu=torch.tensor(NU), steps=1)
    assert type(found) is type(given)
    assert found.dtype == given.dtype
    assert np.isfinite(np.asarray(found)).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_predicts_what_the_cpu_does(tiny_config, saved, u0):
    path = saved(tiny_config())
    on_gpu, on_cpu = ups.load(path), ups.load(path, "cpu")
    assert (on_gpu.device, on_cpu.device) == ("cuda", "cpu")
    expected = on_cpu.predict(torch.from_numpy(u0), nu=NU, steps=4)
    found = on_gpu.predict(torch.from_numpy(u0).cuda(), nu=NU, steps=4)
    assert found.is_cuda
    assert torch.allclose(found.cpu(), expected, atol=1e-4)


def test_several_given_frames_are_told_in_their_order(tiny_config, saved, tiny_data):
    operator = ups.load(saved(tiny_config(operator__history=3)))
    with h5py.File(tiny_data / "burgers1d_test.h5") as file:
        u = file["tensor"][:, ::4]
    found = operator.predict(u[:, :3], nu=NU, steps=2)
    assert np.array_equal(operator.predict(u[:, :3], nu=NU, times=[0.04, 0.08]), found)
    later = operator.predict(np.concatenate([u[:, :3], found[:, :1]], 1), nu=NU, steps=1)
    assert later[:, 0] == pytest.approx(found[:, 1], abs=1e-3)  # but for what the encoder loses
    other = operator.predict(u[:, 2::-1], nu=NU, steps=2)
    assert np.abs(other - found).max() > 0.01
    for few in (u[:, 0], u[0, 0]):
        with pytest.raises(ShapeError, match=r"expected \(N, H, X\) with 3 frames or more"):
            operator.predict(few, nu=NU, steps=1)
    with pytest.raises(ShapeError, match="found 2 frames of each trajectory, expected 3 or more"):
        operator.predict(u[:, :2], nu=NU, steps=1)


def test_of_every_other_point_both_grids_are_taken(tiny_config, saved, u0):
    operator = ups.load(saved(tiny_config(encoder__x_stride=2)))
    assert operator.grid_points == 128
    found = operator.predict(u0, nu=NU, steps=2)
    assert found.shape == (6, 2, 128)
    assert np.array_equal(operator.predict(u0[:, ::2], nu=NU, steps=2), found)
    with pytest.raises(ShapeError, match="found 64 .* the 128 .* or the 256 of which .* every 2th"):
        operator.predict(u0[:, ::4], nu=NU, steps=2)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda u: u[:, ::2], ShapeError, r"found 128 grid points, expected the 256 that"),
        (lambda u: u[None, None], ShapeError, r"found shape \(1, 1, 6, 256\), expected \(X,\)"),
        (lambda u: u[:0], ShapeError, r"found shape \(0, 256\), expected"),
        (lambda u: np.float32(1), ShapeError, r"found shape \(\), expected"),
        (lambda u: (100 * u).astype(int), ShapeError, "type int64, expected real numbers"),
        (lambda u: torch.from_numpy(u).long(), ShapeError, "type torch.int64, expected real"),
        (lambda u: u.astype(complex), ShapeError, "type complex128, expected real numbers"),
        (lambda u: "u", ShapeError, "type <U1, expected real numbers"),
        (
            lambda u: np.where(np.arange(6)[:, None] > 3, np.nan, u),
            DataError,
            "trajectory 4 has NaN or infinite values .2 of 6 do.",
        ),
    ],
)
def test_fields_that_an_operator_does_not_take_are_refused(operator, u0, change, error, message):
    with pytest.raises(error, match=f"^u0: .*{message}"):
        operator.predict(change(u0), nu=NU, steps=1)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"nu": NU}, InputError, r"found neither, expected one: times=…, .* step of 0.04, or"),
        ({"nu": NU, "steps": 1, "times": 1}, InputError, "found both"),
        ({"nu": NU, "times": [0.04, 0.05]}, InputError, "found 0.05, .* operator's step, 0.04"),
        ({"nu": NU, "times": -0.04}, InputError, "found -0.04, expected multiples"),
        ({"nu": NU, "times": np.nan}, InputError, "found nan, expected multiples"),
        ({"nu": NU, "times": []}, InputError, "expected one time or a list of them"),
        ({"nu": NU, "times": "x"}, InputError, "found 'x', expected numbers"),
        ({"nu": NU, "steps": 0}, InputError, "found 0, expected a whole number"),
        ({"nu": NU, "steps": 1.5}, InputError, "found 1.5, expected a whole number"),
        ({"steps": 1}, InputError, r"found none, expected nu=…; .* on burgers1d \(ν = 0.02\)"),
        ({"beta": 1, "steps": 1}, InputError, "found beta, expected nu=…"),
        ({"nu": 1, "beta": 1, "steps": 1}, InputError, "found nu, beta, expected nu=…"),
        ({"nu": 0, "steps": 1}, InputError, "nu: found 0, expected a number above 0"),
        ({"nu": "a", "steps": 1}, InputError, "nu: found 'a', expected a number above 0"),
        ({"nu": [1, 2], "steps": 1}, ShapeError, r"nu: found shape \(2,\), .* or \(6,\), one of"),
        ({"nu": NU, "steps": 1, "problem": "x"}, InputError, "found 'x', expected one with nu: b"),
    ],
)
def test_what_is_asked_for_and_cannot_be_is_refused(operator, u0, given, error, message):
    with pytest.raises(error, match=message):
        operator.predict(u0, **given)


def test_a_parameter_outside_what_was_trained_on_is_warned_of(operator, u0, caplog):
    operator.predict(u0, nu=NU, steps=1)
    assert not caplog.records
    operator.predict(u0, nu=0.5, steps=1)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.message.startswith("nu = 0.5 lies outside what the operator was trained on, 0.02")


def test_of_several_problems_the_parameter_chooses_or_the_name(mixed_config, saved, mixed_data):
    operator = ups.load(saved(mixed_config()))
    assert set(operator.problems) == {"burgers1d", "burgers1d_nu0.1", "advection1d"}
    u = {}
    for name in operator.problems:
        with h5py.File(mixed_data / f"{name}_test.h5") as file:
            u[name] = file["tensor"][:3, 0]
    both = np.concatenate([u["burgers1d"], u["burgers1d_nu0.1"]])
    found = operator.predict(both, nu=[0.02] * 3 + [0.1] * 3, steps=2)
    for rows, nu in ((slice(3), 0.02), (slice(3, 6), 0.1)):
        alone = operator.predict(both[rows], nu=nu, steps=2)
        assert found[rows] == pytest.approx(alone, abs=1e-5)
    assert operator.problem_of(beta=3.0).name == "advection1d"
    with pytest.raises(InputError, match="nu = 0.05 fits none of .* name one, problem='burg"):
        operator.predict(both, nu=0.05, steps=1)
    own = operator.predict(both, nu=0.05, steps=1, problem="burgers1d")
    other = operator.predict(both, nu=0.05, steps=1, problem="burgers1d_nu0.1")
    assert np.abs(own - other).max() > 1e-4


def test_a_checkpoint_that_is_none_is_refused_in_a_line(tiny_config, saved, tmp_path, flip_bit):
    with pytest.raises(CheckpointError, match="no checkpoint .*gone.pt"):
        ups.load(tmp_path / "gone.pt")
    with pytest.raises(CheckpointError, match=r"cannot be read: .*Is a directory"):
        ups.load(tmp_path)
    path = saved(tiny_config())
    flip_bit(path, 5000)
    with pytest.raises(CheckpointError, match="best.pt is not a checkpoint .* its checksum"):
        ups.load(path)
    torch.save({"format": 9}, path)
    with pytest.raises(CheckpointError, match=r"has format 9, expected 1 to 2"):
        ups.load(path)
    torch.save({"weights": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match=r"has format None, expected 1 to 2"):
        ups.load(path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the message is for machines without CUDA")
def test_cuda_that_is_not_there_is_refused(tiny_config, saved):
    with pytest.raises(DeviceError, match="found cuda, but torch sees no CUDA device"):
        ups.load(saved(tiny_config()), device="cuda")


@pytest.mark.parametrize("page", ["README.md", "docs/predict.md"])
def test_the_lines_of_the_pages_run(page, tmp_path):
    config, weight = load_config("smoke"), torch.eye(64)[:, :32]
    said = {"equation": "burgers1d", "parameters": [0.01], "step_dt": 0.1, "sources": {}}
    said["encoder"] = PatchEncoder(weight, 0.0, 1.0).to_manifest()
    state = {"ema": build_operator(config).state_dict(), "trained_on": {"burgers1d": said}}
    checkpoint.save(tmp_path / "best.pt", config, state)
    (lines,) = re.findall(r"```python\n(.*?)```", (ups.PROJECT_DIR / page).read_text(), re.S)
    assert "runs/…/checkpoints/best.pt" in lines
    names = {"u0": np.random.default_rng(0).standard_normal((2, 1024))}
    exec(lines.replace("runs/…/checkpoints", str(tmp_path)), names)
    assert names["u"].shape == (2, 3 if page == "README.md" else 20, 1024)


@pytest.mark.parametrize("holds_encoder", [True, False])
def test_an_earlier_checkpoint_takes_what_it_lacks_from_its_cache_entry(
    tiny_config, saved, as_format_1, stage_all, u0, tmp_path, holds_encoder
):
    then = {"token_kernel": 1, "amplitude_scaling": False, "conserve_mean": False}
    config = tiny_config(**{f"operator__{name}": value for name, value in then.items()})
    path = saved(config)
    expected = ups.load(path).predict(u0, nu=NU, steps=2)
    as_format_1(path, ("sources", "encoder") if holds_encoder else ())
    lacks = "step time" if holds_encoder else "encoder"
    message = f"earlier version, without the {lacks} of burgers1d, and {tmp_path}/cache has no"
    with pytest.raises(CheckpointError, match=message):
        ups.load(path)
    ensure(config, stage_all(config))
    with pytest.raises(CheckpointError, match=message):  # an entry of today's encoder
        ups.load(path)
    (manifest,) = list_entries(tmp_path / "cache")
    encoder = {k: v for k, v in manifest.key_fields["encoder"].items() if "stride" not in k}
    fields = {**manifest.key_fields, "encoder": {**encoder, "algorithm": 1}}
    manifest = manifest.model_copy(update={"key_fields": fields})
    write_manifest(generation_dir(tmp_path / "cache", manifest), manifest)
    assert np.array_equal(ups.load(path).predict(u0, nu=NU, steps=2), expected)

    shutil.copytree(tmp_path / "cache" / manifest.config_hash, tmp_path / "cache" / ("0" * 12))
    other = manifest.model_copy(
        update={"config_hash": "0" * 12, "encoder": {**manifest.encoder, "mean": 0.5}}
    )
    write_manifest(generation_dir(tmp_path / "cache", other), other)
    if holds_encoder:
        assert np.array_equal(ups.load(path).predict(u0, nu=NU, steps=2), expected)
    else:
        with pytest.raises(CheckpointError, match=f"several entries .*{manifest.config_hash}"):
            ups.load(path)


def test_a_fresh_python_elsewhere_predicts_from_the_checkpoint_alone(
    tiny_config, saved, tiny_data, u0, tmp_path
):
    shutil.copytree(tiny_data, tmp_path / "data")
    operator = ups.load(saved(tiny_config(data__root=str(tmp_path / "data"))))
    expected = operator.predict(u0, nu=NU, steps=2)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "best.pt").rename(elsewhere / "copied.pt")
    np.save(elsewhere / "u0.npy", u0)
    for gone in ("data", "cache", "runs"):
        shutil.rmtree(tmp_path / gone, ignore_errors=True)
    script = """
        import sys
        import ups
        assert not {"torch", "numpy", "pydantic"} & sys.modules.keys(), "import ups is instant"
        import numpy as np
        operator = ups.load("copied.pt")
        np.save("u.npy", operator.predict(np.load("u0.npy"), nu=0.02, times=[0.04, 0.08]))
        assert "prefect" not in sys.modules
    """
    env = {**os.environ, "PYTHONPATH": str(ups.PROJECT_DIR)}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, cwd=elsewhere, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert np.load(elsewhere / "u.npy") == pytest.approx(expected, abs=1e-6)
