"""Errors of predicted trajectories, in field units, after PDEBench (Takamoto et al. 2022, app. B).

Each function takes prediction and target (B, T, X) and gives (B,): an error per trajectory, its
mean over time. Means over trajectories are left to the caller.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ups.errors import ShapeError

LOW, MID = 5, 13
EPS = 1e-12


def rmse(pred: Tensor, target: Tensor) -> Tensor:
    """Root-mean-square error over X; field units."""
    return _error(pred, target).square().mean(-1).sqrt().mean(-1)


def nrmse(pred: Tensor, target: Tensor) -> Tensor:
    """|error|_2 / |target|_2 over X; dimensionless."""
    return nrmse_over_time(pred, target).mean(-1)


def nrmse_over_time(pred: Tensor, target: Tensor) -> Tensor:
    """(B, T): nRMSE of each frame; dimensionless."""
    size: Tensor = target.norm(dim=-1) + EPS
    error: Tensor = torch.linalg.vector_norm(_error(pred, target), dim=-1)
    return error / size


def crmse(pred: Tensor, target: Tensor) -> Tensor:
    """Error of the conserved quantity, the mean of u over X; field units."""
    return _error(pred, target).mean(-1).abs().mean(-1)


def max_error(pred: Tensor, target: Tensor) -> Tensor:
    """Largest error over X and T; field units."""
    return _error(pred, target).abs().amax((-1, -2))


def brmse(pred: Tensor, target: Tensor) -> Tensor:
    """RMSE on the first and last grid point; field units."""
    return _error(pred, target)[..., [0, -1]].square().mean(-1).sqrt().mean(-1)


def frmse(pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """RMSE of the Fourier amplitudes in the low (k < 5), mid (k < 13) and high band.

    Amplitudes are scaled so that a sine of amplitude 1 has magnitude 1/2; field units.
    """
    spectrum = torch.fft.rfft(_error(pred, target), dim=-1).abs() / pred.shape[-1]
    bands = spectrum[..., :LOW], spectrum[..., LOW:MID], spectrum[..., MID:]
    low, mid, high = (band.square().mean(-1).sqrt().mean(-1) for band in bands)
    return low, mid, high


def all_metrics(pred: Tensor, target: Tensor) -> dict[str, float]:
    """Every metric, its mean over trajectories, under PDEBench's names."""
    low, mid, high = frmse(pred, target)
    values = {
        "nRMSE": nrmse(pred, target),
        "RMSE": rmse(pred, target),
        "cRMSE": crmse(pred, target),
        "max": max_error(pred, target),
        "bRMSE": brmse(pred, target),
        "fRMSE_low": low,
        "fRMSE_mid": mid,
        "fRMSE_high": high,
    }
    return {name: value.mean().item() for name, value in values.items()}


def _error(pred: Tensor, target: Tensor) -> Tensor:
    if pred.shape != target.shape or pred.ndim != 3:
        raise ShapeError(
            f"prediction {tuple(pred.shape)} and target {tuple(target.shape)}: "
            "expected the same (B, T, X)"
        )
    return pred - target
