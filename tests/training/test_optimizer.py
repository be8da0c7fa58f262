import math
import subprocess
import sys

import pytest
import torch

from ups.config import Optimizer
from ups.training.optimizer import AdamW, Schedule

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
    groups = [{"params": [theirs[0], theirs[2]]}, {"params": [theirs[1]], "weight_decay": 0.0}]
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


def test_the_first_step_does_not_import_the_compiler():
    script = """
import sys
from ups.config import load_config
from ups.training.step import TrainStep
TrainStep(load_config("smoke", {"training.device": "cpu"})).take_made_up_step()
print({"torch._dynamo", "sympy"} & sys.modules.keys())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


@pytest.fixture
def scheduled(tiny_config):
    """`scheduled(taken, total, num, **overrides)`: rate and average's weight of the next steps."""

    def make(taken, total, num, **overrides):
        schedule, rates, weights = Schedule(tiny_config(**overrides), "cpu"), [], []
        schedule.begin(taken, total)
        for _ in range(num):
            schedule.advance()
            rates.append(schedule.lr.item())
            weights.append(schedule.ema_weight.item())
        return rates, weights

    return make


def test_the_rate_rises_for_its_share_of_the_steps_and_falls_to_zero(scheduled):
    settings = {"warmup_fraction": 0.2, "optimizer__lr": 0.01}
    rates, _ = scheduled(0, 50, 51, **{f"stages__operator__{k}": v for k, v in settings.items()})
    rising = [0.01 * step / 10 for step in range(1, 11)]
    falling = [0.005 * (1 + math.cos(math.pi * step / 40)) for step in range(41)]
    assert rates == pytest.approx([*rising, *falling], abs=1e-9)
    assert max(rates) == pytest.approx(0.01)
    assert rates[50] == 0


def test_the_average_forgets_its_first_steps(scheduled):
    _, weights = scheduled(0, 200, 200, training__ema_decay=0.9)
    assert weights[:2] == pytest.approx([0.9, 1 - 2 / 11])
    assert weights[-1] == pytest.approx(0.1)


def test_a_resumed_schedule_goes_on_where_it_was_and_one_of_one_step_has_the_full_rate(scheduled):
    whole, resumed = scheduled(0, 30, 13), scheduled(12, 30, 1)
    assert resumed == ([whole[0][-1]], [whole[1][-1]])
    (rate,), _ = scheduled(0, 1, 1, stages__operator__optimizer__lr=0.01)
    assert rate == pytest.approx(0.01)
