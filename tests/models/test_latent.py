from dataclasses import replace

import pytest
import torch

from ups.equations import EQUATIONS
from ups.equations.advection import ADVECTION
from ups.models.build import build_operator
from ups.models.conditioning import conditioning
from ups.models.latent import LatentOperator

KINDS = {
    "latent_transformer": {},
    "latent_cnn": {"operator": {"kind": "latent_cnn", "hidden_dim": 32, "num_blocks": 2}},
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


@pytest.fixture
def model(tiny_config, kind):
    torch.manual_seed(0)
    model = build_operator(tiny_config(**kind))
    assert isinstance(model, LatentOperator)
    for parameter in model.parameters():  # leave the start, where it is the identity
        torch.nn.init.normal_(parameter, std=0.1)
    return model.double()


def condition(num, nu=0.01, step_dt=0.1, dtype=torch.float64):
    return conditioning(["burgers1d"], "burgers1d", torch.full((num,), nu, dtype=dtype), step_dt)


def test_an_untrained_operator_is_persistence(tiny_config, kind):
    z = torch.randn(3, 1, 8, 16)
    untrained = build_operator(tiny_config(**kind))
    assert torch.equal(untrained(z, condition(3, dtype=torch.float32)), z[:, -1])


def test_a_shift_by_a_coarse_token_shifts_the_output(model):
    z = torch.randn(2, 1, 8, 16, dtype=torch.float64)
    shifted = model(z.roll(2, dims=2), condition(2))
    assert torch.allclose(shifted, model(z, condition(2)).roll(2, dims=1), atol=1e-12)


def test_viscosity_and_time_step_reach_the_output(model):
    z = torch.randn(1, 1, 8, 16, dtype=torch.float64)
    base = model(z, condition(1))
    assert not torch.allclose(model(z, condition(1, nu=0.1)), base)
    assert not torch.allclose(model(z, condition(1, step_dt=0.2)), base)


def test_the_mean_over_space_is_conserved_and_nothing_else(model, tiny_config, kind):
    z = torch.randn(2, 1, 8, 16, dtype=torch.float64)
    before, after = z[:, -1].mean(1), model(z, condition(2)).mean(1)
    assert torch.allclose(after[:, 0], before[:, 0], atol=1e-14)
    assert not torch.isclose(after[:, 1:], before[:, 1:], atol=1e-6).any()
    model.conserves_mean = False
    assert not torch.isclose(model(z, condition(2)).mean(1)[:, 0], before[:, 0], atol=1e-6).any()


def test_the_mean_is_kept_where_all_equations_of_the_run_conserve_it(tiny_config, monkeypatch):
    both = {"data__task": ["burgers1d", "advection1d"]}
    assert build_operator(tiny_config(**both)).conserves_mean
    assert not build_operator(tiny_config(**both, operator__conserve_mean=False)).conserves_mean
    monkeypatch.setitem(EQUATIONS, "advection1d", replace(ADVECTION, conserves_mean=False))
    assert not build_operator(tiny_config(**both)).conserves_mean


def test_of_the_fields_own_values_it_is_the_mean_of_all_that_is_conserved(tiny_config, kind):
    model = build_operator(tiny_config(**kind, encoder__kind="identity", latent__dim=32)).double()
    torch.nn.init.normal_(model.head.bias)
    z = torch.randn(2, 1, 8, 32, dtype=torch.float64)
    after = model(z, condition(2))
    assert torch.allclose(after.mean((1, 2)), z.mean((1, 2, 3)), atol=1e-14)
    assert not torch.isclose(after.mean(1), z.mean((1, 2)), atol=1e-6).any()


def test_the_amplitude_of_a_frame_scales_the_update_and_is_told_by_its_logarithm(model):
    z = torch.randn(2, 1, 8, 16, dtype=torch.float64)
    once, twice = model(z, condition(2)), model(2 * z, condition(2))
    assert not torch.allclose(twice, 2 * once)
    model.condition[0].weight.data[:, -1] = 0  # deaf to it
    once, twice = model(z, condition(2)), model(2 * z, condition(2))
    assert torch.allclose(twice, 2 * once)
    assert torch.isfinite(model(0 * z, condition(2))).all()


def test_every_frame_of_the_history_reaches_the_output_and_the_last_is_advanced(tiny_config, kind):
    overrides = {**kind, "operator__history": 3}
    untrained = build_operator(tiny_config(**overrides))
    z, told = torch.randn(2, 3, 8, 16), condition(2, dtype=torch.float32)
    assert torch.equal(untrained(z, told), z[:, -1])
    torch.nn.init.normal_(untrained.head.weight)
    base = untrained(z, told)
    for frame in range(3):
        changed = z.clone()
        changed[:, frame] += 0.1
        assert not torch.allclose(untrained(changed, told), base)


def test_a_token_hears_its_neighbours_around_the_domain(tiny_config):
    cnn = KINDS["latent_cnn"]["operator"]
    model = build_operator(tiny_config(operator={**cnn, "num_blocks": 1}))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.is_scaled = model.conserves_mean = False
    model.condition[0] = torch.nn.Linear(2, 32)
    z, told = torch.randn(1, 1, 8, 16), condition(1, dtype=torch.float32)
    changed = z.clone()
    changed[:, :, 0] += 1
    is_changed = (model(changed, told) != model(z, told)).any(-1)[0]
    assert is_changed.tolist() == [True] * 4 + [False] + [True] * 3  # three kernels of three


def test_samples_of_a_batch_do_not_mix(model):
    z = torch.randn(4, 1, 8, 16, dtype=torch.float64)
    together = model(z, condition(4))
    alone = torch.cat([model(z[i : i + 1], condition(1)) for i in range(4)])
    assert torch.allclose(together, alone, atol=1e-12)


@pytest.mark.parametrize("depths", [[2], [1, 2, 1], [1, 1, 1, 1, 1]])
def test_every_depth_of_the_u_has_its_stages(tiny_config, depths):
    model = build_operator(tiny_config(operator__depths=depths))
    assert [len(stage) for stage in model.stages] == depths
    z = torch.randn(2, 1, 8, 16)
    assert model(z, condition(2, dtype=torch.float32)).shape == z[:, -1].shape
