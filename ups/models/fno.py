"""The Fourier neural operator (Li et al. 2021) on the points of a frame.

The layers are those of the library `neuraloperator`, which takes seconds to import: only who
builds an operator does so. It gives the next frame itself, as PDEBench's does: a residual update
is better for the first hundreds of steps, and no better after them.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from ups.config import FNO, RunConfig
from ups.models.conditioning import num_conditions

# B batch, H frames of the history, K tokens, D latent dim, C conditioning features, X points


class Operator(nn.Module):
    x_X: Tensor

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        from neuralop.models import FNO as Layers
        from tensorly.plugins import use_default_einsum

        use_default_einsum()  # the library's looks for an order of two factors: no program has that
        op, points = config.operator, config.latent.tokens * config.latent.dim
        assert isinstance(op, FNO)
        self.layers = Layers(
            n_modes=(2 * op.modes - 2,),  # it counts both signs, and leaves out the mean
            in_channels=op.history + 1 + num_conditions(config.data.equations),
            out_channels=1,
            hidden_channels=op.width,
            n_layers=op.num_layers,
            positional_embedding=None,
        )
        self.register_buffer("x_X", torch.arange(points) / points, persistent=False)
        nn.Module.register_state_dict_post_hook(self, _without_metadata)

    def forward(self, z_BHKD: Tensor, condition_BC: Tensor) -> Tensor:
        """The frame after these: (B, H, K, D), (B, C) → (B, K, D)."""
        with torch.autocast(z_BHKD.device.type, enabled=False):  # there is no FFT of bfloat16
            u_BHX = z_BHKD.float().flatten(2)
            told_BCX = condition_BC.float().unsqueeze(-1).expand(-1, -1, len(self.x_X))
            x_B1X = self.x_X.expand(u_BHX.shape[0], 1, -1)
            next_B1X = self.layers(torch.cat([u_BHX, x_B1X, told_BCX], 1))
        return cast(Tensor, next_B1X).view_as(z_BHKD[:, -1])


def _without_metadata(_: nn.Module, state: dict[str, Any], *__: Any) -> None:
    """Drop what the library puts among the weights: its settings, functions among them."""
    state.pop("_metadata", None)
