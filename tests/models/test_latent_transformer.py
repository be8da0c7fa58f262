import pytest
import torch

from ups.models.conditioning import conditioning
from ups.models.latent_transformer import Operator


@pytest.fixture
def model(tiny_config):
    torch.manual_seed(0)
    model = Operator(tiny_config())
    for parameter in model.parameters():  # leave the start, where it is the identity
        torch.nn.init.normal_(parameter, std=0.1)
    return model.double()


def condition(num, nu=0.01, step_dt=0.1, dtype=torch.float64):
    return conditioning(["burgers1d"], "burgers1d", torch.full((num,), nu, dtype=dtype), step_dt)


def test_an_untrained_operator_is_persistence(tiny_config):
    z = torch.randn(3, 1, 8, 16)
    untrained = Operator(tiny_config())
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


def test_samples_of_a_batch_do_not_mix(model):
    z = torch.randn(4, 1, 8, 16, dtype=torch.float64)
    together = model(z, condition(4))
    alone = torch.cat([model(z[i : i + 1], condition(1)) for i in range(4)])
    assert torch.allclose(together, alone, atol=1e-12)


@pytest.mark.parametrize("depths", [[2], [1, 2, 1], [1, 1, 1, 1, 1]])
def test_every_depth_of_the_u_has_its_stages(tiny_config, depths):
    model = Operator(tiny_config(operator__depths=depths))
    assert [len(stage) for stage in model.stages] == depths
    z = torch.randn(2, 1, 8, 16)
    assert model(z, condition(2, dtype=torch.float32)).shape == z[:, -1].shape
