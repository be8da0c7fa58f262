"""The comparison of operators, at sizes that say nothing of them."""

import h5py
import pytest
import torch
from torch import nn

from speed import operators
from speed.harness import Result
from speed.operator_cost import as_good
from speed.operator_training import (
    Choice,
    config_of,
    fields,
    mean_error,
    path_of,
    score,
    staged_of,
    train_for,
)
from speed.settings import Settings
from ups.data.sources import open_files
from ups.equations.burgers import solve
from ups.equations.initial_conditions import cell_centres, initial_conditions
from ups.latents.build import ensure
from ups.latents.encode import fit_encoder
from ups.latents.loader import load
from ups.training.step import TrainStep

NU = 0.01
NAMES = ("latent CNN", "U-Net")  # importing the FNO's library takes seconds


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Tiny, with trajectories of few internal points: what they are is not looked at."""
    folder = tmp_path_factory.mktemp("operators")
    sizes = {"size": 0.0005, "repeats": 1, "num_frames": 41, "grid_points": 256}
    tiny = Settings(folder, results=folder / "results", **sizes)
    t_T, generator = torch.linspace(0, 2, 5, dtype=torch.float64), torch.Generator().manual_seed(0)
    for split in ("train", "val", "test"):
        path = path_of(tiny, NU, split)
        path.parent.mkdir(exist_ok=True)
        u0_NX = initial_conditions(4, 256, generator)
        with h5py.File(path, "w") as file:
            file.attrs["Nu"] = NU
            file["x-coordinate"] = cell_centres(256).float().numpy()
            file["t-coordinate"] = [0, 0.5, 1, 1.5, 2, 2.5]
            file["tensor"] = solve(u0_NX, NU, t_T, internal_points=64).numpy()
    return tiny


def test_the_comparison_has_a_row_a_budget_and_a_picture(settings):
    *trained, cost, solver = operators.compare(settings, map, NAMES, [NU])
    assert len(trained) == 3
    for row in trained:
        assert [r.name for r in row.results] == [*NAMES, "persistence"]
        assert all(len(r.values) == 1 and r.values[0] > 0 for r in row.results)
        assert row.targets == {"U-Net": 1.3}
    assert {r.name for r in cost.results} >= {*NAMES, "solver as good as U-Net"}
    assert solver.results[0].name == "16 points"
    (picture,) = settings.results.glob("operators-*-trial.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_choice_marks_what_is_used(settings, monkeypatch):
    monkeypatch.setitem(operators.PAIRS, "latent CNN", (20,))
    monkeypatch.setattr(operators, "RATES", (2e-3, 4e-3))
    monkeypatch.setitem(operators.CHOSEN, ("latent CNN", NU), Choice(4e-3, 20))
    (row,) = operators.choose_from(settings, map, NAMES[:1], [NU])
    assert {r.name: r.role for r in row.results} == {
        "lr 0.002, 20 pairs": "peer",
        "lr 0.004, 20 pairs": "ours",
    }


class Still(nn.Module):
    """Persistence as an operator."""

    def forward(self, z_BHKD, _):
        return z_BHKD[:, -1]


@pytest.mark.parametrize("name", NAMES)
def test_all_kinds_are_scored_on_the_same_points(settings, name):
    config = config_of(settings, name, NU, Choice(1e-3, 4))
    encoder = fit_encoder(config, open_files(config, staged_of(settings, NU)["train"]))
    u_NTX, _ = fields(settings, config, NU, "test")
    scored_NTX = u_NTX[..., ::4]
    expected = mean_error(scored_NTX[:, :1].expand_as(scored_NTX[:, 1:]), scored_NTX)
    found = score(settings, config, Still(), encoder, NU, "test")
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_coarsest_solver_that_errs_no_more_is_the_one_beside_an_operator():
    solver = [
        Result(f"{points} points", "peer", [ms], {"nRMSE": [error]})
        for points, ms, error in ((16, 1.0, 0.5), (32, 2.0, 0.2), (64, 4.0, 0.05))
    ]
    beside = as_good(solver, "FNO", 0.2)
    assert (beside.values, beside.extras["points"]) == ([2.0], [32.0])
    assert as_good(solver, "FNO", 0.01).failed


def test_the_schedule_ends_with_the_budget(settings):
    config = config_of(settings, "latent CNN", NU, Choice(1e-3, 4))
    staged = {"burgers1d": staged_of(settings, NU)}
    entry = {"burgers1d": ensure(config, staged["burgers1d"])}
    latents, step = load(config, entry, staged, device="cpu"), TrainStep(config)
    seconds, num_steps = train_for(step, latents.train, budget_s=0.4, step_s=2e-3)
    latents.close()
    assert num_steps < 150, "a step takes longer than two milliseconds"
    assert 0.2 < seconds < 0.8
    assert step.schedule.lr < 1e-4
