"""A generated file has PDEBench's layout, and is there whole or not at all."""

import h5py
import numpy as np
import pytest
import torch

from ups.data.generate import generate
from ups.equations import EQUATIONS
from ups.equations.initial_conditions import initial_conditions
from ups.errors import Interrupted

SMALL = {"grid_points": 64, "num_frames": 5, "t_end": 0.4}

pytestmark = pytest.mark.parametrize("equation", list(EQUATIONS))


def test_seed_determines_the_bytes_of_the_file_and_batch_size_does_not(equation, tmp_path):
    for name, seed, batch_size in (("a", 0, 6), ("b", 0, 6), ("c", 0, 4), ("d", 1, 6)):
        generate(tmp_path / name, 6, equation, 0.05, seed=seed, batch_size=batch_size, **SMALL)
    a, b, c, d = ((tmp_path / name).read_bytes() for name in "abcd")
    assert a == b
    assert a != d
    with h5py.File(tmp_path / "a") as first, h5py.File(tmp_path / "c") as other:
        atol = 1e-6 if equation == "burgers1d" else 0  # advection: a formula
        np.testing.assert_allclose(first["tensor"], other["tensor"], rtol=0, atol=atol)
    assert len(a) == len(c)


def test_file_has_the_layout_of_pdebench_with_the_equations_attribute(equation, tmp_path):
    path = tmp_path / "new" / f"{equation}_train.h5"
    done = []
    generate(path, 3, equation, 0.05, seed=0, batch_size=2, progress=done.append, **SMALL)
    with h5py.File(path) as file:
        assert set(file) == {"tensor", "x-coordinate", "t-coordinate"}
        tensor = file["tensor"]
        assert (tensor.shape, tensor.dtype, tensor.chunks) == ((3, 5, 64), np.float32, None)
        assert dict(file.attrs) == {{"burgers1d": "Nu", "advection1d": "beta"}[equation]: 0.05}
        u0 = initial_conditions(2, 64, torch.Generator().manual_seed(0))
        np.testing.assert_allclose(tensor[:2, 0], u0, atol=1e-6)
        np.testing.assert_allclose(file["x-coordinate"], (np.arange(64) + 0.5) / 64, rtol=1e-6)
        np.testing.assert_allclose(file["t-coordinate"], np.arange(6) * 0.1, rtol=1e-6)
    assert done == sorted(done)
    assert done[-1] == 3
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_stopping_leaves_no_file_behind(equation, tmp_path):
    def interrupt(done):
        if done >= 2:
            raise Interrupted(f"at {done}")

    options = {"seed": 0, "batch_size": 2, "progress": interrupt, **SMALL}
    with pytest.raises(Interrupted, match="at 2"):
        generate(tmp_path / "x.h5", 4, equation, 0.05, **options)
    assert list(tmp_path.iterdir()) == []
