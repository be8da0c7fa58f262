"""What the operator is told: of one equation two features, of several two each and the time."""

import math

import pytest
import torch

from ups.models.conditioning import conditioning, num_conditions
from ups.models.latent_transformer import Operator

BOTH = ["burgers1d", "advection1d"]


def test_one_equation_has_its_parameter_and_the_time_of_a_step():
    nu = torch.tensor([0.01, 0.001, 1.0])
    found = conditioning(["burgers1d"], "burgers1d", nu, 0.1)
    assert torch.equal(found[:, 0], torch.log10(nu) / 2 + 1)
    assert torch.equal(found[:, 1], torch.full((3,), math.log10(0.1) + 1))
    found = conditioning(["advection1d"], "advection1d", torch.tensor([0.1, 1.0]), 0.01)
    assert torch.allclose(found, torch.tensor([[-1.0, -1.0], [0.0, -1.0]]))


def test_several_equations_have_an_indicator_and_a_parameter_each_that_is_0_for_the_others():
    burgers = conditioning(BOTH, "burgers1d", torch.tensor([0.01]), 0.1)
    advection = conditioning(BOTH, "advection1d", torch.tensor([10.0]), 0.1)
    assert torch.allclose(burgers, torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0]]), atol=1e-6)
    assert torch.allclose(advection, torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.0]]), atol=1e-6)


@pytest.mark.parametrize("equations", [BOTH[:1], BOTH[1:], BOTH])
def test_the_number_of_features_is_that_of_the_operator(equations, tiny_config):
    config = tiny_config(data__task=list(equations))
    assert config.data.equations == tuple(equations)
    features = conditioning(equations, equations[0], torch.tensor([0.4]), 0.1)
    assert features.shape == (1, num_conditions(equations))
    z = torch.randn(1, 1, 8, 16)
    assert Operator(config)(z, features).shape == z[:, -1].shape
