"""The exact solution of advection shifts, and keeps what it shifts."""

import pytest
import torch

from ups.equations import advection
from ups.equations.initial_conditions import cell_centres, draw, evaluate

X = 128


def draws(num):
    return draw(num, torch.Generator().manual_seed(0))


def smooth(num):
    """Draws of initial conditions without an absolute value or a window."""
    found = draws(num)
    found[:, [10, 12]] = 1.0
    return found


@pytest.mark.parametrize("beta", [0.1, 0.4, 7.0])
def test_the_first_frame_is_the_initial_condition_and_later_ones_are_it_rolled(beta):
    cells = torch.tensor([0, 1, 5, X - 1, 3 * X + 2])
    u = advection.solve(draws(20), beta, cells / (X * beta), X)
    assert torch.equal(u[:, 0], evaluate(draws(20), cell_centres(X)).float())
    for frame, shift in enumerate(cells.tolist()):
        assert torch.allclose(u[:, frame], u[:, 0].roll(shift, -1), atol=2e-6)


def test_mean_and_norm_are_kept_at_any_time():
    u = advection.solve(smooth(10), 0.7, torch.linspace(0, 2, 9, dtype=torch.float64), X)
    for quantity in (u.double().mean(-1), u.double().norm(dim=-1)):
        assert torch.allclose(quantity, quantity[:, :1].expand_as(quantity), atol=1e-5)


def test_the_field_obeys_the_equation():
    beta, dt = 0.4, 1e-3
    u = advection.solve(smooth(5), beta, torch.tensor([0.3 - dt, 0.3, 0.3 + dt]), X).double()
    wave_numbers = 2j * torch.pi * torch.arange(X // 2 + 1)
    u_x = torch.fft.irfft(wave_numbers * torch.fft.rfft(u[:, 1]), n=X)
    u_t = (u[:, 2] - u[:, 0]) / (2 * dt)
    assert (u_t + beta * u_x).abs().max() < 2e-3 * u_t.abs().max()
