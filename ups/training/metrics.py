"""Errors of predicted trajectories, in field units, after PDEBench (Takamoto et al. 2022, app. B).

The aggregation is PDEBench's too: RMSE and nRMSE are means over trajectories and times; the
conserved and the Fourier errors are root mean squares over trajectories before they are averaged
over times and modes; the maximum is taken over trajectories and space at each time. A frame whose
truth is zero has no nRMSE, where PDEBench's is infinite: the mean is that of the other frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ups.errors import DataError, ShapeError

LOW_END, MID_END = 4, 12  # first wave number of the mid and of the high band
EPS = 1e-12
MOST_LISTED = 5


def nrmse_over_time(pred: Tensor, target: Tensor) -> Tensor:
    """(B, T, X) twice → (B, T): |error|_2 / |target|_2 over X; NaN where the target is zero."""
    size: Tensor = torch.linalg.vector_norm(target, dim=-1) + EPS
    error: Tensor = torch.linalg.vector_norm(_error(pred, target), dim=-1)
    return (error / size).masked_fill(is_zero(target), math.nan)


def is_zero(target: Tensor, least: float = EPS) -> Tensor:
    """(B, T, X) → (B, T): whether a frame is so small that nothing can be relative to it."""
    size: Tensor = torch.linalg.vector_norm(target, dim=-1)
    return size < least


class Metrics:
    """Collects the errors of batches of trajectories; all batches have the same T and X."""

    def __init__(self) -> None:
        self._num, self._num_frames = 0, 0
        self._num_zero = torch.zeros((), dtype=torch.int64)
        self._worst: list[Tensor] = []
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
        rmse_BT, zero_BT = error.square().mean(-1).sqrt(), is_zero(target)
        self._num += len(error)
        self._num_frames += zero_BT.numel()
        self._num_zero = self._num_zero.to(error.device) + zero_BT.sum()
        self._worst.append(rmse_BT.amax(1))
        self._max_T = torch.maximum(self._max_T.to(error.device), error.abs().amax((0, 2)))
        ends = error[..., [0, -1]]
        spectrum = torch.fft.rfft(error, dim=-1).abs() / error.shape[-1]
        self._add("RMSE", rmse_BT.sum(0))
        self._add("nRMSE", nrmse_over_time(pred, target).masked_fill(zero_BT, 0).sum(0))
        self._add("bRMSE", ends.square().mean(-1).sqrt().sum(0))
        self._add("cRMSE", error.mean(-1).square().sum(0))
        self._add("fRMSE", spectrum.square().sum(0))

    def add(self, other: Metrics) -> None:
        """Add what another has collected: in the order of the batches, as one would, to the bit.

        What both hold is on one device.
        """
        self._num += other._num
        self._num_frames += other._num_frames
        self._num_zero = self._num_zero.to(other._num_zero.device) + other._num_zero
        self._worst += other._worst
        self._max_T = torch.maximum(self._max_T.to(other._max_T.device), other._max_T)
        for name, value in other._sums.items():
            self._add(name, value)

    def to_host(self) -> None:
        """Bring what is collected into the memory of the CPU."""
        self._num_zero, self._max_T = self._num_zero.cpu(), self._max_T.cpu()
        self._worst = [worst.cpu() for worst in self._worst]
        self._sums = {name: value.cpu() for name, value in self._sums.items()}

    def result(self) -> dict[str, float]:
        """PDEBench's names → field units; nRMSE dimensionless. Fourier amplitudes are over X.

        The conserved quantity is the mean of u over X; the boundary is its first and last point.
        nRMSE is NaN where every target is zero; a band that the grid does not have is left out.
        The means are taken on the CPU: wherever the errors come from, it rounds alike.
        """
        means = {name: total.cpu() / self._num for name, total in self._sums.items()}
        modes_TK = means["fRMSE"].sqrt()
        values = {
            "RMSE": means["RMSE"],
            "nRMSE": means["nRMSE"],
            "cRMSE": means["cRMSE"].sqrt(),
            "max": self._max_T.cpu(),
            "bRMSE": means["bRMSE"],
            "fRMSE_low": modes_TK[:, :LOW_END],
            "fRMSE_mid": modes_TK[:, LOW_END:MID_END],
            "fRMSE_high": modes_TK[:, MID_END:],
        }
        found = {name: value.mean().item() for name, value in values.items() if value.numel()}
        found["nRMSE"] *= share_left_in(self._num_frames, int(self._num_zero))
        return found

    def first_not_finite(self) -> int | None:
        """Which of the trajectories is the first with an error that is not finite."""
        is_bad_N = ~torch.cat(self._worst).isfinite()
        return int(is_bad_N.int().argmax()) if is_bad_N.any() else None

    def _add(self, name: str, value: Tensor) -> None:
        self._sums[name] = self._sums[name] + value if name in self._sums else value


def note_zeros(
    where: str, zeros_N: Tensor, num_frames: int, name: Callable[[int], str]
) -> str | None:
    """Which trajectories have frames that are zero, and what that means; None where none has.

    Args:
        zeros_N: such frames of each trajectory, of `num_frames`.
    Raises:
        DataError: all frames of all of them are.
    """
    found = zeros_N.nonzero().flatten().tolist()
    if not found:
        return None
    if int(zeros_N.sum()) == len(zeros_N) * num_frames:
        raise DataError(
            f"{where}: all trajectories are zero, from {name(0)} on, and an error relative to them "
            "is not defined: generate or fetch the file again"
        )
    listed = [f"{name(i)} ({zeros_N[i]} of {num_frames} frames)" for i in found[:MOST_LISTED]]
    more = ", …" if len(found) > MOST_LISTED else ""
    return (
        f"{where}: frames that are zero have no nRMSE and are left out of its mean: "
        f"{', '.join(listed)}{more}"
    )


def share_left_in(num: int, num_zero: int) -> float:
    """What corrects a mean of `num` numbers to which `num_zero` added nothing; NaN of none."""
    return num / (num - num_zero) if num > num_zero else math.nan


def _error(pred: Tensor, target: Tensor) -> Tensor:
    if pred.shape != target.shape or pred.ndim != 3:
        raise ShapeError(
            f"prediction {tuple(pred.shape)} and target {tuple(target.shape)}: "
            "expected the same (B, T, X)"
        )
    return pred - target
