"""What the operators on latents share: a residual update of a frame's tokens.

    z(t + s) = z(t) + a · f(z(t) / a, log a, dt, parameters),  a = rms of z(t)

The domain is periodic and so are they: a shift of the input by a token shifts the output by a
token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ups.config import LatentSettings, RunConfig
from ups.equations import EQUATIONS
from ups.models.conditioning import num_conditions

LEAST_AMPLITUDE = 1e-6

# B batch, H frames of the history, K tokens, D latent dim, W width, C conditioning features


class LatentOperator(nn.Module):
    """The residual update around `update`, which each kind has its own of.

    Attributes:
        embed: tokens with their neighbours → (B, K, W).
        condition: the conditioning, and log a → (B, W).
        head: (B, K, W) → the increment (B, K, D); zero at first, so an untrained operator is
            persistence.
    """

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        op, dim = config.operator, config.latent.dim
        assert isinstance(op, LatentSettings)
        width, equations = op.hidden_dim, config.data.equations
        self.is_scaled = op.amplitude_scaling
        self.conserves_mean = op.conserve_mean and all(
            EQUATIONS[name].conserves_mean for name in equations
        )
        # Of a patch's points all make its mean; of its latents the first is that.
        self.mean_channels = dim if config.encoder.kind == "identity" else 1
        self.embed = TokenConvolution(op.history * dim, width, op.token_kernel)
        self.condition = nn.Sequential(
            nn.Linear(num_conditions(equations) + self.is_scaled, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
        )
        self.norm = nn.LayerNorm(width)
        self.head = TokenConvolution(width, dim, op.token_kernel)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, z_BHKD: Tensor, condition_BC: Tensor) -> Tensor:
        """The frame after these: (B, H, K, D), (B, C) → (B, K, D)."""
        last_BKD = z_BHKD[:, -1]
        x_BKD, c_BC = z_BHKD.transpose(1, 2).flatten(2), condition_BC
        if self.is_scaled:
            a_B11 = last_BKD.square().mean((1, 2), keepdim=True).sqrt().clamp(min=LEAST_AMPLITUDE)
            x_BKD, c_BC = x_BKD / a_B11, torch.cat([c_BC, a_B11[:, 0].log()], -1)
        x_BKW = self.update(self.embed(x_BKD), self.condition(c_BC))
        increment_BKD: Tensor = self.head(self.norm(x_BKW))
        if self.is_scaled:
            increment_BKD = a_B11 * increment_BKD
        if self.conserves_mean:
            num = self.mean_channels
            mean_B1M = increment_BKD[..., :num].mean((1, 2), keepdim=True).expand(-1, -1, num)
            increment_BKD = increment_BKD - F.pad(mean_B1M, (0, increment_BKD.shape[-1] - num))
        return last_BKD + increment_BKD

    def update(self, x_BKW: Tensor, c_BW: Tensor) -> Tensor:
        """(B, K, W), (B, W) → (B, K, W)."""
        raise NotImplementedError


class TokenConvolution(nn.Linear):
    """A circular convolution over the tokens, as one product; of kernel 1 a linear layer."""

    def __init__(self, dim_in: int, dim_out: int, kernel: int) -> None:
        super().__init__(kernel * dim_in, dim_out)
        self._shifts = [kernel // 2 - i for i in range(kernel)]

    def forward(self, x_BKD: Tensor) -> Tensor:
        """(B, K, D in) → (B, K, D out)."""
        if len(self._shifts) > 1:
            x_BKD = torch.cat([x_BKD.roll(shift, 1) for shift in self._shifts], -1)
        return super().forward(x_BKD)


def normalised(x: Tensor) -> Tensor:
    """Each token's channels to mean 0 and deviation 1."""
    return F.layer_norm(x, x.shape[-1:])
