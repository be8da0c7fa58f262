"""What the operator takes in memory while it is trained, counted on a pair or two."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ups.config import RunConfig
from ups.models.conditioning import num_conditions
from ups.models.operator import LatentOperator

STATE_COPIES = 5  # weights, gradients, two moments, moving average; all float32
STATE_ITEM_BYTES = 4


@dataclass(frozen=True, slots=True)
class Footprint:
    """
    Attributes:
        state_bytes: weights, gradients, moments and moving average.
        activation_bytes: what the forward pass of one batch keeps for the backward pass. With what
            that needs for a moment, the memory of a process grew by 1.3 times as much.
    """

    num_parameters: int
    state_bytes: int
    activation_bytes: int

    @property
    def num_bytes(self) -> int:
        return self.state_bytes + self.activation_bytes


def footprint(config: RunConfig, num_frames: int, device: str) -> Footprint:
    """
    Args:
        num_frames: of a trajectory as stored.
        device: `cuda` or `cpu`; decides about the precision.
    """
    precision = config.training.precision
    half = precision == "bf16" or (precision == "auto" and device == "cuda")
    model = LatentOperator(config).to(torch.bfloat16 if half else torch.float32)
    num_parameters = sum(p.numel() for p in model.parameters())
    one, two = (_saved_bytes(model, config, num_pairs) for num_pairs in (1, 2))
    saved = one + (two - one) * (_pairs(config, num_frames) - 1)
    return Footprint(
        num_parameters=num_parameters,
        state_bytes=num_parameters * STATE_COPIES * STATE_ITEM_BYTES,
        activation_bytes=saved * config.training.rollout_horizon,
    )


def _pairs(config: RunConfig, num_frames: int) -> int:
    """Pairs of a batch: each trajectory's frames from which `rollout_horizon` steps are left."""
    training = config.training
    starts = -(-num_frames // training.time_stride) - training.rollout_horizon
    return max(1, training.batch_size * starts)


def _saved_bytes(model: LatentOperator, config: RunConfig, num_pairs: int) -> int:
    """What one application of the operator keeps for the backward pass, without its weights."""
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = storage.nbytes()
        return tensor

    dtype = model.embed.weight.dtype
    z_BKD = torch.zeros(num_pairs, config.latent.tokens, config.latent.dim, dtype=dtype)
    condition_BC = torch.zeros(num_pairs, num_conditions(config.data.equations), dtype=dtype)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = model(z_BKD, condition_BC)
    del out  # it holds what was saved until here, so no storage's address is used twice
    return sum(saved.values())
