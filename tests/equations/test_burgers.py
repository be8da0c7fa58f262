"""The Burgers solver agrees with the exact solution and keeps what the equation keeps."""

import math

import pytest
import torch

from ups.equations import burgers
from ups.equations.initial_conditions import cell_centres, initial_conditions


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


def test_mean_is_conserved_energy_and_peak_never_grow_and_the_first_frame_is_u0():
    u0 = initial_conditions(24, 512, generator(1))
    u = burgers.solve(u0, 0.01, torch.arange(21) * 0.05)
    assert u.dtype == torch.float32
    assert torch.equal(u[:, 0], u0.float())
    mean = u.double().mean(-1)
    assert mean.abs().max() > 0.1  # some are |u|, so that conservation says something
    assert (mean - mean[:, :1]).abs().max() < 1e-6
    energy = u.double().square().mean(-1)
    assert (energy.diff(dim=1) <= 1e-6 * energy[:, :-1]).all()
    assert (energy[:, -1] < 0.5 * energy[:, 0]).any()
    assert (u.abs().amax(dim=(1, 2)) <= u0.abs().amax(dim=1) + 1e-5).all()


def test_a_trajectory_does_not_depend_on_its_batch_and_torchs_threads_stay_as_they_were():
    before = torch.get_num_threads()
    u0 = initial_conditions(7, 256, generator(2))
    t = torch.arange(11) * 0.02
    together = burgers.solve(u0, 0.02, t)
    alone = torch.cat([burgers.solve(row, 0.02, t) for row in u0.split(1)])
    assert (together - alone).abs().max() < 1e-6
    assert torch.get_num_threads() == before


def test_wrong_shapes_are_refused():
    t = torch.tensor([0.0, 0.1])
    with pytest.raises(ValueError, match=r"found u0 \(64,\)"):
        burgers.solve(torch.zeros(64), 0.1, t)
    with pytest.raises(ValueError, match="internal_points 96: expected at most the grid's 64"):
        burgers.solve(torch.zeros(1, 64), 0.1, t, internal_points=96)
