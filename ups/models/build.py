"""The model of a config: `operator.kind` names its file, which is imported only when asked for."""

from __future__ import annotations

import importlib
from typing import Protocol, cast

from torch import Tensor, nn

from ups.config import RunConfig


class Operator(Protocol):
    """What each kind is: a module that advances frames by one operator step."""

    def __call__(self, z_BHKD: Tensor, condition_BC: Tensor) -> Tensor:
        """The frame after `operator.history` frames: (B, H, K, D), (B, C) → (B, K, D)."""


def build_operator(config: RunConfig) -> nn.Module:
    """The untrained operator of a config, an `Operator`, on the CPU.

    Raises:
        MissingExtra: its library is not installed.
    """
    config.operator.require_library()
    module = importlib.import_module(f"ups.models.{config.operator.kind}")
    return cast(nn.Module, module.Operator(config))
