import subprocess
import sys

import pytest
import torch

from ups.config import Optimizer
from ups.training.optimizer import AdamW

SETTINGS = Optimizer(lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)


def parameters():
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 3), (3,), (2, 4)]
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def loss(values):
    return sum((p * (i + 1)).square().sum() for i, p in enumerate(values))


def test_it_takes_the_steps_of_torchs_own_class():
    ours, theirs = parameters(), parameters()
    lr = torch.tensor(SETTINGS.lr)
    optimizer = AdamW(ours, lr, SETTINGS)
    groups = [
        {"params": [theirs[0], theirs[2]]},
        {"params": [theirs[1]], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=SETTINGS.lr, betas=(0.9, 0.95), weight_decay=0.1)
    for _ in range(5):
        for values, step in ((ours, optimizer), (theirs, reference)):
            step.zero_grad()
            loss(values).backward()
            step.step()
    for mine, its in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, its, atol=1e-7)


def test_a_state_is_loaded_into_the_same_memory():
    values = parameters()
    optimizer = AdamW(values, torch.tensor(0.01), SETTINGS)
    loss(values).backward()
    optimizer.step()
    other = AdamW(parameters(), torch.tensor(0.01), SETTINGS)
    before = [t.data_ptr() for t in other.state_dict()["0"]["mean"]]
    other.load_state_dict(optimizer.state_dict())
    after = other.state_dict()["0"]
    assert [t.data_ptr() for t in after["mean"]] == before
    assert torch.equal(after["mean"][0], optimizer.state_dict()["0"]["mean"][0])
    assert after["step"][0] == 1


@pytest.mark.parametrize("module", ["torch._dynamo", "sympy"])
def test_the_first_step_does_not_import_the_compiler(module):
    script = f"""
import sys
from ups.config import load_config
from ups.training.step import TrainStep
TrainStep(load_config("smoke", {{"training.device": "cpu"}})).take_made_up_step()
print({module!r} in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
