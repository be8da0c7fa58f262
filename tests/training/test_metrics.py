"""Metrics against values computed by hand."""

import math

import pytest
import torch

from ups.errors import ShapeError
from ups.training.metrics import Metrics, nrmse_over_time

X = 64
POSITION = torch.arange(X) / X


def measured(*errors_X):
    """Trajectories of two frames: the target is 2 everywhere, the error the same in both."""
    target = torch.full((len(errors_X), 2, X), 2.0)
    metrics = Metrics()
    metrics.update(target + torch.stack(errors_X)[:, None], target)
    return metrics.result()


def test_a_constant_error_counts_in_every_metric():
    found = measured(torch.full((X,), 0.5))
    assert found["RMSE"] == pytest.approx(0.5)
    assert found["nRMSE"] == pytest.approx(0.25)
    assert found["cRMSE"] == pytest.approx(0.5)
    assert found["max"] == pytest.approx(0.5)
    assert found["bRMSE"] == pytest.approx(0.5)
    assert found["fRMSE_low"] == pytest.approx(0.5 / 4)
    assert found["fRMSE_mid"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("wave", "band"), [(3, "low"), (4, "mid"), (11, "mid"), (12, "high")])
def test_a_sine_error_conserves_the_mean_and_falls_into_its_band(wave, band):
    found = measured(torch.sin(2 * math.pi * wave * POSITION))
    assert found["RMSE"] == pytest.approx(math.sqrt(0.5))
    assert found["cRMSE"] == pytest.approx(0, abs=1e-6)
    widths = {"low": 4, "mid": 8, "high": X // 2 + 1 - 12}
    for name, width in widths.items():
        expected = 0.5 / width if name == band else 0
        assert found[f"fRMSE_{name}"] == pytest.approx(expected, abs=1e-6)


def test_a_coarse_grid_has_no_high_band():
    metrics, target = Metrics(), torch.ones(1, 2, 16)
    metrics.update(target + 0.5, target)
    assert metrics.result().keys() >= {"fRMSE_low", "fRMSE_mid"}
    assert "fRMSE_high" not in metrics.result()


def test_an_error_at_one_end_counts_at_the_boundary():
    error = torch.zeros(X)
    error[0] = 3
    found = measured(error)
    assert found["bRMSE"] == pytest.approx(3 / math.sqrt(2))
    assert found["max"] == 3


def test_two_trajectories_are_aggregated_as_pdebench_does():
    found = measured(torch.full((X,), 0.3), torch.full((X,), 0.4))
    assert found["RMSE"] == pytest.approx(0.35)  # a mean
    assert found["cRMSE"] == pytest.approx(math.sqrt((0.09 + 0.16) / 2))  # a root mean square
    assert found["fRMSE_low"] == pytest.approx(math.sqrt((0.09 + 0.16) / 2) / 4)
    assert found["max"] == pytest.approx(0.4)


def test_batches_add_up_to_the_whole():
    generator = torch.Generator().manual_seed(0)
    pred, target = torch.randn(2, 6, 3, X, generator=generator)
    whole, parts = Metrics(), Metrics()
    whole.update(pred, target)
    for i in (0, 4):
        parts.update(pred[i : i + 4], target[i : i + 4])
    assert parts.result() == pytest.approx(whole.result(), rel=1e-5)


def test_nrmse_over_time_is_per_trajectory_and_frame():
    target = torch.ones(2, 2, X)
    pred = target.clone()
    pred[0, 0] += 0.2
    assert torch.allclose(nrmse_over_time(pred, target), torch.tensor([[0.2, 0], [0, 0]]))


def test_a_frame_that_is_zero_has_no_nrmse_and_the_others_keep_theirs():
    target = torch.ones(2, 3, X)
    target[0, 1] = 0
    pred, metrics = target + 0.5, Metrics()
    metrics.update(pred, target)
    assert nrmse_over_time(pred, target)[0].isnan().tolist() == [False, True, False]
    assert metrics.result()["nRMSE"] == pytest.approx(0.5)
    assert metrics.result()["RMSE"] == pytest.approx(0.5)


def test_the_first_trajectory_whose_errors_are_not_finite_is_known():
    target, metrics = torch.ones(3, 2, X), Metrics()
    metrics.update(target, target)
    assert metrics.first_not_finite() is None
    pred = target.clone()
    pred[1, 1, 5] = 1e30
    metrics.update(pred, target)
    assert metrics.first_not_finite() == 4


def test_shapes_that_differ_are_refused():
    with pytest.raises(ShapeError, match=r"expected the same \(B, T, X\)"):
        Metrics().update(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4))


def test_what_batches_have_collected_adds_up_to_what_one_collects_bit_for_bit():
    generator = torch.Generator().manual_seed(0)
    pairs = [torch.randn((2, num, 3, X), generator=generator) for num in (4, 1, 3)]
    whole, added = Metrics(), Metrics()
    for pred, target in pairs:
        target[0, 0] = 0
        whole.update(pred, target)
        of_batch = Metrics()
        of_batch.update(pred, target)
        added.add(of_batch)
    assert added.result() == whole.result()
    pairs[2][0][1] = math.nan
    of_batch = Metrics()
    of_batch.update(*pairs[2])
    added.add(of_batch)
    assert (whole.first_not_finite(), added.first_not_finite()) == (None, 9)
