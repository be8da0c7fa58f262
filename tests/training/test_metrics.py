"""Metrics against values computed by hand."""

import math

import pytest
import torch

from ups.errors import ShapeError
from ups.training import metrics

X = 64
POSITION = torch.arange(X) / X


def fields(error_X):
    """One trajectory of two frames: the target is 2 everywhere, the error the same in both."""
    target = torch.full((1, 2, X), 2.0)
    return target + error_X, target


def test_a_constant_error_counts_in_every_metric():
    pred, target = fields(torch.full((X,), 0.5))
    found = metrics.all_metrics(pred, target)
    assert found["RMSE"] == pytest.approx(0.5)
    assert found["nRMSE"] == pytest.approx(0.25)
    assert found["cRMSE"] == pytest.approx(0.5)
    assert found["max"] == pytest.approx(0.5)
    assert found["bRMSE"] == pytest.approx(0.5)
    assert found["fRMSE_low"] == pytest.approx(0.5 / math.sqrt(5))
    assert found["fRMSE_mid"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("wave", "band"), [(2, "low"), (8, "mid"), (20, "high")])
def test_a_sine_error_conserves_the_mean_and_falls_into_its_band(wave, band):
    pred, target = fields(torch.sin(2 * math.pi * wave * POSITION))
    found = metrics.all_metrics(pred, target)
    assert found["RMSE"] == pytest.approx(math.sqrt(0.5))
    assert found["cRMSE"] == pytest.approx(0, abs=1e-6)
    widths = {"low": 5, "mid": 8, "high": X // 2 + 1 - 13}
    for name, width in widths.items():
        expected = 0.5 / math.sqrt(width) if name == band else 0
        assert found[f"fRMSE_{name}"] == pytest.approx(expected, abs=1e-6)


def test_an_error_at_one_end_counts_at_the_boundary():
    error = torch.zeros(X)
    error[0] = 3
    pred, target = fields(error)
    assert metrics.brmse(pred, target).item() == pytest.approx(3 / math.sqrt(2))
    assert metrics.max_error(pred, target).item() == 3


def test_nrmse_is_per_trajectory_and_the_mean_over_time():
    target = torch.ones(2, 2, X)
    pred = target.clone()
    pred[0, 0] += 0.2  # one of two frames of the first trajectory
    assert torch.allclose(metrics.nrmse(pred, target), torch.tensor([0.1, 0.0]))


def test_shapes_that_differ_are_refused():
    with pytest.raises(ShapeError, match=r"expected the same \(B, T, X\)"):
        metrics.rmse(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4))
