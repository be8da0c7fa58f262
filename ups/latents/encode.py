"""The encoder: patches of a frame projected on an orthonormal basis, one matrix product.

A frame of X grid points is cut into K patches of P = X / K points, and each patch is projected to
D channels. The first is the patch's mean, times √P: so a mean over space that an equation conserves
is one channel's mean over the tokens, whatever the data. D ≤ P: the others are the principal
subspace of what is left of the training patches. D > P: they are the rest of the basis, seen
through orthonormal columns. From D = P on nothing is lost; decoding is the transpose in all cases.

The kind `identity` is the field's own values, D = P of each patch.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ups.config import ProblemConfig
from ups.data.pdebench import Frames, TrajectoryFile, locate
from ups.errors import ShapeError
from ups.latents.order import fit_rows

FIT_FRAME_STRIDE = 8


class PatchEncoder:
    """Encodes frames to latents and back.

    Args:
        weight_PD: (P, D) float32, P points of a patch to D channels, orthonormal.
        mean, std: of the field over the training patches, field units.
    """

    def __init__(self, weight_PD: Tensor, mean: float, std: float) -> None:
        self.weight_PD = weight_PD
        self.mean, self.std = mean, std
        self._scaled_PD = weight_PD / std
        self._bias_D = -(mean / std) * weight_PD.sum(0)

    @property
    def device(self) -> torch.device:
        return self.weight_PD.device

    def to(self, device: torch.device | str) -> PatchEncoder:
        return PatchEncoder(self.weight_PD.to(device), self.mean, self.std)

    def encode(self, frames: Tensor, out: Tensor | None = None) -> Tensor:
        """(…, X) field units → (…, K, D) float32, on the encoder's device.

        Args:
            out: (…, K, D) float32, contiguous, to encode into; default a new tensor.
        Raises:
            ShapeError: X is not a multiple of the patch size.
        """
        points = self.weight_PD.shape[0]
        if frames.shape[-1] % points:
            raise ShapeError(
                f"frames have {frames.shape[-1]} points, not a multiple of {points}: encode them "
                "with the encoder of their grid"
            )
        patches = frames.reshape(-1, points)
        into = None if out is None else out.view(-1, out.shape[-1])
        latents = torch.addmm(self._bias_D, patches, self._scaled_PD, out=into)
        return latents.view(*frames.shape[:-1], -1, self.weight_PD.shape[1])

    def decode(self, latents: Tensor) -> Tensor:
        """(…, K, D) → (…, X), field units."""
        return (latents @ self.weight_PD.T).flatten(-2) * self.std + self.mean

    def distance(self, other: PatchEncoder) -> float:
        """How far latents may be from the other's, relative to their size; of other shapes: inf."""
        if self.weight_PD.shape != other.weight_PD.shape:
            return math.inf
        turned: float = (self.weight_PD.cpu() - other.weight_PD.cpu()).norm(dim=0).max().item()
        return max(turned, abs(self.mean - other.mean) / other.std, abs(self.std / other.std - 1))

    def to_manifest(self) -> dict[str, Any]:
        """The encoder as JSON can hold it, to the bit."""
        weight = self.weight_PD.cpu().numpy().astype("<f4")
        return {
            "mean": self.mean,
            "std": self.std,
            "shape": list(weight.shape),
            "weight_float32_base64": base64.b64encode(weight.tobytes()).decode(),
        }

    @classmethod
    def from_manifest(cls, record: Mapping[str, Any]) -> Self:
        """The encoder that `to_manifest` wrote down, on the CPU."""
        flat = np.frombuffer(base64.b64decode(record["weight_float32_base64"]), "<f4")
        weight = torch.from_numpy(flat.reshape(record["shape"]).copy())
        return cls(weight, record["mean"], record["std"])


def fit_encoder(config: ProblemConfig, train: Sequence[TrajectoryFile]) -> PatchEncoder:
    """Fit on a seeded subset of the training trajectories, on the CPU in float64.

    Subset, order, signs and precision are fixed. Vectors with more variance than rounding leaves
    to chance come out alike on every machine; those with less may be turned among themselves by
    another BLAS. So the manifest of an entry, and a checkpoint, hold the weights.

    Args:
        train: the files of the train split; the subset is drawn from the rows of all of them.
    Raises:
        DataError: a trajectory of the subset is not finite.
    """
    num_points, dim = config.patch_points, config.latent.dim
    if config.encoder.kind == "identity":
        return PatchEncoder(torch.eye(num_points), 0.0, 1.0)
    ends = np.cumsum([file.num_trajectories for file in train])
    chosen, rng = fit_rows(config, int(ends[-1]))
    stride = max(1, FIT_FRAME_STRIDE // config.encoder.t_stride)
    fields = np.stack([_read_for_fit(train, ends, index, stride) for index in chosen.tolist()])
    patches = fields.reshape(-1, num_points).astype(np.float64)
    # Mean, deviation and covariance come from one product: each further pass over the patches
    # takes as long as reading them.
    num, sums = len(patches), patches.sum(0)
    products = patches.T @ patches
    mean, std = 0.0, 1.0
    if config.encoder.normalise:
        mean = float(sums.sum()) / patches.size
        std = math.sqrt(max(0.0, np.trace(products) / patches.size - mean**2)) or 1.0
    shared = mean * (sums[:, None] + sums[None, :])
    covariance = (products - shared + num * mean**2) / (num * std**2)
    weight = torch.from_numpy(_basis(covariance, dim, rng).astype(np.float32))
    return PatchEncoder(weight, mean, std)


def _basis(
    covariance: NDArray[np.float64], dim: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """(P, P) of patches → (P, D): the constant vector, then the principal ones of the rest."""
    num_points = len(covariance)
    constant = np.full((num_points, 1), num_points**-0.5)
    if dim == 1:
        return constant
    others = np.linalg.qr(np.hstack([constant, np.eye(num_points)[:, 1:]]))[0][:, 1:]
    _, vectors = np.linalg.eigh(others.T @ covariance @ others)
    principal = (others @ vectors)[:, ::-1][:, : dim - 1]
    largest = principal[np.abs(principal).argmax(0), np.arange(principal.shape[1])]
    principal = principal * np.where(largest < 0, -1, 1)
    if dim > num_points > 1:
        lift, _ = np.linalg.qr(rng.standard_normal((dim - 1, num_points - 1)))
        principal = principal @ lift.T
    elif dim > num_points:
        principal = np.zeros((1, dim - 1))
    return np.ascontiguousarray(np.hstack([constant, principal]))


def _read_for_fit(
    files: Sequence[TrajectoryFile], ends: NDArray[np.int64], index: int, stride: int
) -> Frames:
    """Every so many-th frame of trajectory `index` of all the files' rows."""
    which, row = locate(ends, index)
    frames = files[which].read_frames(row, stride)
    files[which].check_finite(frames[None], row)
    return frames
