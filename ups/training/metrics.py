"""Errors of predicted trajectories, in field units, after PDEBench (Takamoto et al. 2022, app. B).

The aggregation is PDEBench's too: RMSE and nRMSE are means over trajectories and times; the
conserved and the Fourier errors are root mean squares over trajectories before they are averaged
over times and modes; the maximum is taken over trajectories and space at each time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ups.errors import ShapeError

LOW_END, MID_END = 4, 12  # first wave number of the mid and of the high band
EPS = 1e-12


def nrmse_over_time(pred: Tensor, target: Tensor) -> Tensor:
    """(B, T, X) twice → (B, T): |error|_2 / |target|_2 over X, dimensionless."""
    size: Tensor = torch.linalg.vector_norm(target, dim=-1) + EPS
    error: Tensor = torch.linalg.vector_norm(_error(pred, target), dim=-1)
    return error / size


class Metrics:
    """Collects the errors of batches of trajectories; all batches have the same T and X."""

    def __init__(self) -> None:
        self._num = 0
        self._sums: dict[str, Tensor] = {}
        self._max_T = torch.zeros(())

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Add the errors of a batch.

        Args:
            pred, target: (B, T, X), field units (de-normalised).
        Raises:
            ShapeError: the shapes differ or are not 3-D.
        """
        error = _error(pred, target)
        self._num += len(error)
        self._max_T = torch.maximum(self._max_T.to(error.device), error.abs().amax((0, 2)))
        ends = error[..., [0, -1]]
        spectrum = torch.fft.rfft(error, dim=-1).abs() / error.shape[-1]
        self._add("RMSE", error.square().mean(-1).sqrt().sum(0))
        self._add("nRMSE", nrmse_over_time(pred, target).sum(0))
        self._add("bRMSE", ends.square().mean(-1).sqrt().sum(0))
        self._add("cRMSE", error.mean(-1).square().sum(0))
        self._add("fRMSE", spectrum.square().sum(0))

    def result(self) -> dict[str, float]:
        """PDEBench's names → field units; nRMSE dimensionless. Fourier amplitudes are over X.

        The conserved quantity is the mean of u over X; the boundary is its first and last point.
        """
        means = {name: total / self._num for name, total in self._sums.items()}
        modes_TK = means["fRMSE"].sqrt()
        values = {
            "RMSE": means["RMSE"],
            "nRMSE": means["nRMSE"],
            "cRMSE": means["cRMSE"].sqrt(),
            "max": self._max_T,
            "bRMSE": means["bRMSE"],
            "fRMSE_low": modes_TK[:, :LOW_END],
            "fRMSE_mid": modes_TK[:, LOW_END:MID_END],
            "fRMSE_high": modes_TK[:, MID_END:],
        }
        return {name: value.mean().item() for name, value in values.items()}

    def _add(self, name: str, value: Tensor) -> None:
        self._sums[name] = self._sums[name] + value if name in self._sums else value


def _error(pred: Tensor, target: Tensor) -> Tensor:
    if pred.shape != target.shape or pred.ndim != 3:
        raise ShapeError(
            f"prediction {tuple(pred.shape)} and target {tuple(target.shape)}: "
            "expected the same (B, T, X)"
        )
    return pred - target
