"""Random initial conditions are distributed as PDEBench describes them."""

import math

import torch

from ups.equations.initial_conditions import initial_conditions


def test_one_in_ten_initial_conditions_is_absolute_and_one_in_ten_windowed():
    num = 4000
    u0 = initial_conditions(num, 128, torch.Generator().manual_seed(3))
    bound = 4 * math.sqrt(num * 0.1 * 0.9)
    one_signed = ((u0 >= 0).all(1) | (u0 <= 0).all(1)).sum()
    assert abs(one_signed - 0.1 * num) < bound
    negative = (u0 <= 0).all(1).sum()
    assert abs(negative - one_signed / 2) < 4 * math.sqrt(one_signed / 4)
    silent_ends = ((u0[:, 0].abs() < 1e-6) & (u0[:, -1].abs() < 1e-6)).sum()
    assert abs(silent_ends - 0.1 * num) < bound
    assert u0.abs().max() <= 2


def test_initial_conditions_have_two_modes_of_four_with_uniform_amplitudes():
    u0 = initial_conditions(4000, 128, torch.Generator().manual_seed(5))
    spectrum = torch.fft.rfft(u0).abs() / 64
    pure = (spectrum[:, 5:].amax(1) < 1e-9) & (spectrum[:, 0] < 1e-9)
    assert 0.75 < pure.double().mean() < 0.87  # 0.9 × 0.9
    spectrum = spectrum[pure, 1:5]
    num_modes = (spectrum > 1e-9).sum(1)
    assert num_modes.max() == 2
    assert 0.2 < (num_modes == 1).double().mean() < 0.3  # the same wave number twice: 1/4
    amplitudes = spectrum[num_modes == 2]
    amplitudes = amplitudes[amplitudes > 1e-9]
    assert amplitudes.max() <= 1
    assert abs(amplitudes.mean() - 0.5) < 0.02
