"""Learning rate and averaging weight: computed on the device, as their formulas say."""

import math

import pytest

from ups.training.schedule import Schedule


def lr_at(step, total, peak, warm_up):
    if step < warm_up:
        return peak * (step + 1) / warm_up
    return peak * 0.5 * (1 + math.cos(math.pi * min(1, (step - warm_up) / (total - warm_up))))


def test_the_rate_rises_for_its_share_of_the_steps_and_falls_to_zero(tiny_config):
    config = tiny_config(
        stages__operator__warmup_fraction=0.2, stages__operator__optimizer__lr=0.01
    )
    schedule = Schedule(config, "cpu")
    schedule.begin(0, 50)
    rates = []
    for _ in range(51):
        schedule.advance()
        rates.append(schedule.lr.item())
    assert rates == pytest.approx([lr_at(i, 50, 0.01, 10) for i in range(51)], abs=1e-9)
    assert max(rates) == pytest.approx(0.01)
    assert rates[50] == 0


def test_the_average_forgets_its_first_steps(tiny_config):
    schedule = Schedule(tiny_config(training__ema_decay=0.9), "cpu")
    schedule.begin(0, 200)
    weights = []
    for _ in range(200):
        schedule.advance()
        weights.append(schedule.ema_weight.item())
    assert weights[:2] == pytest.approx([0.9, 1 - 2 / 11])
    assert weights[-1] == pytest.approx(0.1)


def test_a_resumed_schedule_goes_on_where_it_was(tiny_config):
    whole, resumed = (Schedule(tiny_config(), "cpu") for _ in range(2))
    whole.begin(0, 30)
    for _ in range(13):
        whole.advance()
    resumed.begin(12, 30)
    resumed.advance()
    assert resumed.lr == whole.lr
    assert resumed.ema_weight == whole.ema_weight


def test_a_schedule_of_one_step_has_the_full_rate(tiny_config):
    schedule = Schedule(tiny_config(stages__operator__optimizer__lr=0.01), "cpu")
    schedule.begin(0, 1)
    schedule.advance()
    assert schedule.lr.item() == pytest.approx(0.01)
