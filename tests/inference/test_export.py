"""What is exported can be read, and does the same, without this project."""

import json
import tomllib

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import ups
from ups.errors import InputError
from ups.inference.export import export
from ups.models.build import build_operator


def test_what_is_exported_takes_the_same_step_without_this_project(
    tiny_config, saved, tiny_data, tmp_path
):
    config = tiny_config(operator={"kind": "latent_cnn", "hidden_dim": 16, "num_blocks": 1})
    path = saved(config)
    operator = ups.load(path, "cpu")
    exported = export(operator, path, tmp_path / "out")
    with h5py.File(tiny_data / "burgers1d_test.h5") as file:
        u0 = torch.from_numpy(file["tensor"][:, 0])
    expected = operator.predict(u0, nu=0.02, steps=1)[:, 0]

    card, tensors = json.loads(exported.card.read_text()), load_file(exported.weights)
    own = card["problems"]["burgers1d"]
    program = torch.export.load(tmp_path / "out" / own["program"]).module()
    for num in (1, 6):
        found = program(u0[:num, None], torch.full((num,), own["trained_on"][0]))
        assert torch.allclose(found, expected[:num], atol=1e-5)

    weight, mean, std = (own["encoder"][key] for key in ("weight", "mean", "std"))
    weight = tensors[weight]
    z = ((u0.view(6, 8, -1) - mean) / std) @ weight
    model = build_operator(config)
    model.load_state_dict({n[6:]: v for n, v in tensors.items() if n.startswith("model.")})
    condition = torch.tensor([np.log10(0.02) / 2 + 1, np.log10(own["step_dt"]) + 1]).float()
    with torch.no_grad():
        after = model(z[:, None], condition.expand(6, 2))
    assert torch.allclose((after @ weight.T * std + mean).flatten(1), expected, atol=1e-5)
    assert own["data"]["train"][0]["sha256"]
    assert (card["scores"], card["commit"]) == (None, None)
    project = tomllib.loads((ups.PROJECT_DIR / "pyproject.toml").read_text())["project"]
    assert card["licence"] == project["license"]
    assert str(tmp_path) not in exported.card.read_text()
    with pytest.raises(InputError, match="weights.safetensors is there already: .* --force"):
        export(operator, path, tmp_path / "out")


def test_a_program_of_the_fno_takes_batches_of_any_size(tiny_config, saved, tmp_path):
    on_grid = {"encoder__kind": "identity", "encoder__x_stride": 8, "latent__dim": 4}
    settings = {"kind": "fno", "history": 2, "width": 4, "modes": 4, "num_layers": 1}
    path = saved(tiny_config(operator=settings, **on_grid))
    operator = ups.load(path, "cpu")
    exported = export(operator, path, tmp_path / "out")
    u0 = torch.randn(3, 2, 32)
    expected = operator.predict(u0, nu=0.02, steps=1)[:, 0]
    program = torch.export.load(exported.programs["burgers1d"]).module()
    for num in (1, 3):
        found = program(u0[:num], torch.full((num,), 0.02))
        assert torch.allclose(found, expected[:num], atol=1e-5)


def test_a_network_that_is_no_program_is_exported_without_one_which_is_said(
    tiny_config, saved, tmp_path, caplog
):
    path = saved(tiny_config())
    operator = ups.load(path, "cpu")
    forward = operator.model.forward
    operator.model.forward = lambda z, c: forward(z, c) if z.sum() > 0 else z[:, -1]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "step.pt2").write_bytes(b"of an earlier export")
    exported = export(operator, path, tmp_path / "out", overwrite=True)
    assert exported.programs == {"burgers1d": None}
    assert "burgers1d: no program: " in caplog.text
    assert json.loads(exported.card.read_text())["problems"]["burgers1d"]["program"] is None
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "card.json",
        "weights.safetensors",
    ]
