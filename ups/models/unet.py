"""The U-Net (Ronneberger et al. 2015) on the points of a frame, as a residual update.

The update did better than giving the next frame itself. Two convolutions a level, which go around
the periodic domain. Normalised are the channels of each sample (GroupNorm), not those of a batch:
what a BatchNorm learns of its batches is no parameter, so the moving average of the weights would
not have it; and a batch is of pairs that are neighbours in time.
"""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from ups.config import RunConfig, UNet
from ups.models.conditioning import num_conditions

# B batch, H frames of the history, K tokens, D latent dim, C conditioning features, X points


class Operator(nn.Module):
    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        op = config.operator
        assert isinstance(op, UNet)
        widths = [op.width << i for i in range(op.num_levels)]
        channels = op.history + num_conditions(config.data.equations)
        self.down = nn.ModuleList(
            _two_convolutions(before, after) for before, after in pairwise([channels, *widths])
        )
        finer = [*pairwise(widths)][::-1]
        self.up = nn.ModuleList(nn.ConvTranspose1d(low, high, 2, stride=2) for high, low in finer)
        self.merge = nn.ModuleList(_two_convolutions(2 * high, high) for high, _ in finer)
        self.head = nn.Conv1d(op.width, 1, 1)
        self.pool = nn.MaxPool1d(2)

    def forward(self, z_BHKD: Tensor, condition_BC: Tensor) -> Tensor:
        """The frame after these: (B, H, K, D), (B, C) → (B, K, D)."""
        last_BKD, u_BHX = z_BHKD[:, -1], z_BHKD.flatten(2)
        told_BCX = condition_BC.unsqueeze(-1).expand(-1, -1, u_BHX.shape[-1])
        first, *coarser = self.down
        levels = [first(torch.cat([u_BHX, told_BCX], 1))]
        for convolutions in coarser:
            levels.append(convolutions(self.pool(levels[-1])))
        x = levels.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([levels.pop(), up(x)], 1))
        return last_BKD + cast(Tensor, self.head(x)).view_as(last_BKD)


def _two_convolutions(before: int, after: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (before, after):
        layers += [
            nn.Conv1d(channels, after, 3, padding=1, padding_mode="circular"),
            nn.GroupNorm(1, after),
            nn.GELU(),
        ]
    return nn.Sequential(*layers)
