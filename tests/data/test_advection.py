"""The exact solution of advection shifts, keeps what it shifts, and has PDEBench's layout."""

import threading

import h5py
import pytest
import torch

from ups.data import advection
from ups.data.initial import cell_centres, draw, evaluate
from ups.errors import Interrupted

X = 128
SMALL = {"beta": 0.4, "grid_points": 64, "num_frames": 5, "t_end": 0.4}


def draws(num, seed=0):
    return draw(num, torch.Generator().manual_seed(seed))


def smooth(num, seed=0):
    """Draws of initial conditions without an absolute value or a window."""
    found = draws(num, seed)
    found[:, [6, 8]] = 1.0
    return found


@pytest.mark.parametrize("beta", [0.1, 0.4, 7.0])
def test_after_the_time_of_some_cells_the_field_is_the_first_one_rolled(beta):
    cells = torch.tensor([0, 1, 5, X - 1, 3 * X + 2])
    u = advection.solve(draws(20), beta, cells / (X * beta), X)
    for frame, shift in enumerate(cells.tolist()):
        assert torch.allclose(u[:, frame], u[:, 0].roll(shift, -1), atol=2e-6)


def test_the_first_frame_is_the_initial_condition():
    u = advection.solve(draws(3), 0.4, torch.tensor([0.0]), X)
    assert torch.equal(u[:, 0], evaluate(draws(3), cell_centres(X)).float())


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


def test_a_file_has_pdebenchs_layout_with_beta_and_its_seed_determines_it(tmp_path):
    for name, seed, batch_size in (("a", 0, 6), ("b", 0, 4), ("c", 1, 6)):
        path = tmp_path / f"{name}.h5"
        advection.generate(path, 6, seed=seed, batch_size=batch_size, **SMALL)
    a, b, c = (h5py.File(tmp_path / f"{name}.h5") for name in "abc")
    assert a["tensor"].shape == (6, 5, 64)
    assert a["tensor"].dtype == "<f4"
    assert a["t-coordinate"].shape == (6,)
    assert a["x-coordinate"][0] == pytest.approx(0.5 / 64)
    assert a.attrs["beta"] == 0.4
    assert (a["tensor"][()] == b["tensor"][()]).all()
    assert (a["tensor"][()] != c["tensor"][()]).any()


def test_progress_counts_trajectories_and_a_stop_leaves_nothing(tmp_path):
    told = []
    advection.generate(tmp_path / "a.h5", 6, seed=0, batch_size=3, progress=told.append, **SMALL)
    assert told == sorted(told)
    assert told[-1] == 6
    stop = threading.Event()
    stop.set()
    with pytest.raises(Interrupted, match="stopped at saved time 0 of 5"):
        advection.generate(tmp_path / "b.h5", 6, seed=0, stop=stop, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]
