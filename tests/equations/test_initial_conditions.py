"""Random initial conditions are distributed as PDEBench describes them."""

import math

import torch

from ups.equations.initial_conditions import cell_centres, draw, evaluate

COLUMNS = {"absolute": 10, "negative": 11, "windowed": 12}


def draws(num, seed, **columns):
    found = draw(num, torch.Generator().manual_seed(seed))
    for column, value in columns.items():
        found[:, COLUMNS[column]] = value
    return found


def test_one_in_ten_is_absolute_one_in_ten_windowed_and_half_of_all_flipped():
    num, x = 4000, cell_centres(128)
    bound = 4 * math.sqrt(num * 0.1 * 0.9)
    drawn = draws(num, 3, windowed=1.0)
    one_signed = evaluate(drawn, x)
    plain = evaluate(draws(num, 3, windowed=1.0, absolute=1.0), x)
    is_absolute = (one_signed != plain).any(1) | (plain >= 0).all(1) | (plain <= 0).all(1)
    assert ((one_signed[is_absolute] >= 0).all(1) | (one_signed[is_absolute] <= 0).all(1)).all()
    changed = (one_signed != plain).any(1).sum()
    assert 0.05 * num < changed < 0.1 * num + bound
    unflipped = evaluate(draws(num, 3, windowed=1.0, absolute=1.0, negative=1.0), x)
    flipped = (plain == -unflipped).all(1).sum()
    assert abs(flipped - num / 2) < 4 * math.sqrt(num / 4)
    windowed = (evaluate(draws(num, 3), x) != one_signed).any(1).sum()
    assert abs(windowed - 0.1 * num) < bound


def test_a_window_begins_left_and_ends_just_beyond_the_middle():
    x = cell_centres(1024)
    whole = evaluate(draws(2000, 4, windowed=1.0), x)
    inside = evaluate(draws(2000, 4, windowed=0.0), x) / whole
    first, last = (
        (inside > 0.5).double().argmax(1),
        1023 - (inside > 0.5).flip(1).double().argmax(1),
    )
    assert 0.099 < x[first].min() < 0.102
    assert 0.133 < x[first].max() < 0.136
    assert 0.549 < x[last].min() < 0.552
    assert 0.583 < x[last].max() < 0.586
    assert inside[:, x > 0.7].abs().max() < 1e-6


def test_modes_that_are_not_drawn_are_constants_and_one_drawn_twice_is_twice_as_fast():
    u = evaluate(draws(4000, 5, absolute=1.0, windowed=1.0), cell_centres(128))
    spectrum = torch.fft.rfft(u).abs() / 64
    assert set((spectrum > 1e-9).nonzero()[:, 1].tolist()) == {0, 1, 2, 3, 4, 6, 8}
    num_waves = (spectrum[:, 1:] > 1e-9).sum(1)
    assert set(num_waves.tolist()) == {1, 2}
    twice = (num_waves == 1).double().mean()
    assert abs(twice - 1 / 4) < 0.03  # one of four drawn twice; two drawn have other wave numbers
    amplitudes = spectrum[:, 1:][spectrum[:, 1:] > 1e-9]
    assert amplitudes.max() <= 1
    assert abs(amplitudes.mean() - 0.5) < 0.02
    mean = u.mean(1)
    assert abs(mean.square().mean() - (0.75 * 2 + 0.25 * 3) / 6) < 0.02  # A sin φ: 1/6 each


def test_two_calls_give_what_one_call_gives():
    generator = torch.Generator().manual_seed(1)
    parts = torch.cat([draw(3, generator), draw(5, generator)])
    assert torch.equal(parts, draw(8, torch.Generator().manual_seed(1)))
