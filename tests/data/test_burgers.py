import math
import threading

import h5py
import numpy as np
import pytest
import torch

from ups.data import burgers
from ups.data.initial import cell_centres, initial_conditions
from ups.errors import Interrupted, ShapeError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def two_modes(num, grid_points, seed=0):
    """Smooth u0 with mean zero, and −∫u0 dx, at any x: amplitude, wave number and phase drawn."""
    draws = torch.rand(3, 2, num, 1, generator=generator(seed), dtype=torch.float64)
    k = 2 * math.pi * (4 * draws[0]).floor().add(1)

    def u0(x):
        return (draws[1] * torch.sin(k * x + 7 * draws[2])).sum(0)

    def potential(x):
        return (draws[1] / k * torch.cos(k * x + 7 * draws[2])).sum(0)

    return u0(cell_centres(grid_points)), potential


def cole_hopf(potential, kappa, x, t):
    """u(x, t) = ∫ (x−y)/t w dy / ∫ w dy, w = exp(potential(y)/2κ − (x−y)²/4κt), potential = −∫u0.

    The trapezoidal rule on a grid far finer than the Gaussian; exponents shifted by their maximum.
    """
    y = torch.arange(-3.0, 4.0, 1 / 2048, dtype=torch.float64)
    offset = x[:, None] - y
    exponent = potential(y)[:, None, :] / (2 * kappa) - offset**2 / (4 * kappa * t)
    weight = torch.softmax(exponent, dim=-1)
    return (weight * offset).sum(-1) / t


@pytest.mark.parametrize("nu", [0.01, 0.05])
def test_solver_agrees_with_cole_hopf(nu):
    u0, potential = two_modes(3, 1024)
    t = torch.tensor([0.0, 0.05, 0.3, 1.0, 2.0], dtype=torch.float64)
    u = burgers.solve(u0, nu, t)
    every = slice(None, None, 16)
    x = cell_centres(1024)[every]
    exact = torch.stack([cole_hopf(potential, nu / math.pi, x, s) for s in t[1:].tolist()], dim=1)
    error = (u[:, 1:, every] - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert error.mean() < 2e-5
    assert error.max() < 1e-4


def test_more_internal_points_give_the_same_values_at_the_saved_points():
    u0 = initial_conditions(2, 256, generator(4))
    t = torch.arange(4) * 0.05
    coarse = burgers.solve(u0, 0.05, t, internal_points=256)
    fine = burgers.solve(u0, 0.05, t, internal_points=512)
    assert (coarse - fine).abs().max() < 2e-5


def test_small_viscosity_gets_more_internal_points():
    chosen = {
        nu: burgers.choose_internal_points(nu, 1024) for nu in (0.1, 0.01, 0.004, 0.002, 0.001)
    }
    assert chosen == {0.1: 512, 0.01: 512, 0.004: 1024, 0.002: 2048, 0.001: 2048}
    assert burgers.choose_internal_points(0.01, 100) == 600


def random_trajectories():
    u0 = initial_conditions(24, 512, generator(1))
    return u0, burgers.solve(u0, 0.01, torch.arange(21) * 0.05)


def test_mean_is_conserved_energy_never_grows_and_the_first_frame_is_u0():
    u0, u = random_trajectories()
    assert u.dtype == torch.float32
    assert torch.equal(u[:, 0], u0.float())
    mean = u.double().mean(-1)
    assert mean.abs().max() > 0.1  # some are |u|, so that conservation says something
    assert (mean - mean[:, :1]).abs().max() < 1e-6
    energy = u.double().square().mean(-1)
    assert (energy.diff(dim=1) <= 1e-6 * energy[:, :-1]).all()
    assert (energy[:, -1] < 0.5 * energy[:, 0]).any()


def test_peak_never_grows():
    u0, u = random_trajectories()
    assert (u.abs().amax(dim=(1, 2)) <= u0.abs().amax(dim=1) + 1e-5).all()


def test_a_trajectory_does_not_depend_on_its_batch():
    u0 = initial_conditions(7, 256, generator(2))
    t = torch.arange(11) * 0.02
    together = burgers.solve(u0, 0.02, t)
    alone = torch.cat([burgers.solve(row, 0.02, t) for row in u0.split(1)])
    assert (together - alone).abs().max() < 1e-6


def test_solver_leaves_the_number_of_torch_threads_as_it_was():
    before = torch.get_num_threads()
    burgers.solve(torch.zeros(1, 64), 0.1, torch.tensor([0.0, 0.1]))
    assert torch.get_num_threads() == before


def test_one_in_ten_initial_conditions_is_absolute_and_one_in_ten_windowed():
    num = 4000
    u0 = initial_conditions(num, 128, generator(3))
    bound = 4 * math.sqrt(num * 0.1 * 0.9)
    one_signed = ((u0 >= 0).all(1) | (u0 <= 0).all(1)).sum()
    assert abs(one_signed - 0.1 * num) < bound
    negative = (u0 <= 0).all(1).sum()
    assert abs(negative - one_signed / 2) < 4 * math.sqrt(one_signed / 4)
    silent_ends = ((u0[:, 0].abs() < 1e-6) & (u0[:, -1].abs() < 1e-6)).sum()
    assert abs(silent_ends - 0.1 * num) < bound
    assert u0.abs().max() <= 2


def test_initial_conditions_have_two_modes_of_four_with_uniform_amplitudes():
    u0 = initial_conditions(4000, 128, generator(5))
    spectrum = torch.fft.rfft(u0).abs() / 64
    pure = (spectrum[:, 5:].amax(1) < 1e-9) & (spectrum[:, 0] < 1e-9)
    assert 0.75 < pure.double().mean() < 0.87  # 0.9 × 0.9
    spectrum = spectrum[pure, 1:5]
    num_modes = (spectrum > 1e-9).sum(1)
    assert num_modes.max() == 2
    assert 0.2 < (num_modes == 1).double().mean() < 0.3  # the same wave number twice: 1/4
    amplitudes = spectrum[num_modes == 2]
    amplitudes = amplitudes[amplitudes > 1e-9]
    assert amplitudes.max() <= 1
    assert abs(amplitudes.mean() - 0.5) < 0.02


SMALL = {"nu": 0.05, "grid_points": 64, "num_frames": 5, "t_end": 0.4}


def test_seed_determines_the_bytes_of_the_file_and_batch_size_does_not(tmp_path):
    for name, seed, batch_size in (("a", 0, 6), ("b", 0, 6), ("c", 0, 4), ("d", 1, 6)):
        burgers.generate(tmp_path / name, 6, seed=seed, batch_size=batch_size, **SMALL)
    a, b, c, d = ((tmp_path / name).read_bytes() for name in "abcd")
    assert a == b
    assert a != d
    with h5py.File(tmp_path / "a") as first, h5py.File(tmp_path / "c") as other:
        np.testing.assert_allclose(first["tensor"], other["tensor"], atol=1e-6)
    assert len(a) == len(c)


def test_file_has_the_layout_of_pdebench(tmp_path):
    path = tmp_path / "new" / "burgers1d_train.h5"
    done = []
    burgers.generate(path, 3, seed=0, batch_size=2, progress=done.append, **SMALL)
    with h5py.File(path) as file:
        assert set(file) == {"tensor", "x-coordinate", "t-coordinate"}
        tensor = file["tensor"]
        assert (tensor.shape, tensor.dtype, tensor.chunks) == ((3, 5, 64), np.float32, None)
        assert file.attrs["Nu"] == 0.05
        np.testing.assert_allclose(file["x-coordinate"], (np.arange(64) + 0.5) / 64, rtol=1e-6)
        np.testing.assert_allclose(file["t-coordinate"], np.arange(6) * 0.1, rtol=1e-6)
    assert done == sorted(done)
    assert done[-1] == 3
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_stopping_leaves_no_file_behind(tmp_path):
    stop = threading.Event()

    def after_the_first_batch(done):
        if done >= 2:
            stop.set()

    with pytest.raises(Interrupted, match="stopped at saved time"):
        burgers.generate(
            tmp_path / "x.h5",
            4,
            seed=0,
            batch_size=2,
            stop=stop,
            progress=after_the_first_batch,
            **SMALL,
        )
    assert list(tmp_path.iterdir()) == []


def test_wrong_shapes_are_refused():
    t = torch.tensor([0.0, 0.1])
    with pytest.raises(ShapeError, match=r"found u0 \(64,\)"):
        burgers.solve(torch.zeros(64), 0.1, t)
    with pytest.raises(ShapeError, match="internal_points 96: expected at most the grid's 64"):
        burgers.solve(torch.zeros(1, 64), 0.1, t, internal_points=96)
