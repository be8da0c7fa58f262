"""The latent transformer: a U over the tokens of a frame, with a residual update.

    z(t + s) = z(t) + a · f(z(t) / a, log a, dt, parameters),  a = rms of z(t)

The domain is periodic and so is the model: attention sees only the circular distance of two
tokens (rotary embedding with whole-number frequencies), and the convolutions of embedding and head
go around, so a shift of the input by a token shifts the output by a token.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ups.config import LatentTransformer, RunConfig
from ups.equations import EQUATIONS
from ups.models.conditioning import num_conditions

LEAST_AMPLITUDE = 1e-6

# B batch, H frames of the history, K tokens, D latent dim, W width, C conditioning features


class Operator(nn.Module):
    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        op, dim = config.operator, config.latent.dim
        assert isinstance(op, LatentTransformer)
        width, tokens = op.hidden_dim, config.latent.tokens
        equations = config.data.equations
        self.is_scaled = op.amplitude_scaling
        self.conserves_mean = op.conserve_mean and all(
            EQUATIONS[name].conserves_mean for name in equations
        )
        self.embed = TokenMixing(op.history * dim, width, op.token_kernel)
        self.condition = nn.Sequential(
            nn.Linear(num_conditions(equations) + self.is_scaled, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
        )
        levels = op.num_levels
        sizes = [tokens >> min(i, len(op.depths) - 1 - i) for i in range(len(op.depths))]
        self.stages = nn.ModuleList(
            nn.ModuleList(Block(width, op.num_heads, op.mlp_ratio, size) for _ in range(depth))
            for depth, size in zip(op.depths, sizes, strict=True)
        )
        self.merge = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(levels - 1))
        self.split = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(levels - 1))
        self.skip = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(levels - 1))
        self.norm = nn.LayerNorm(width)
        self.head = TokenMixing(width, dim, op.token_kernel)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, z_BHKD: Tensor, condition_BC: Tensor) -> Tensor:
        """The frame after these: (B, H, K, D), (B, C) → (B, K, D)."""
        last_BKD = z_BHKD[:, -1]
        x_BKD, c_BC = z_BHKD.transpose(1, 2).flatten(2), condition_BC
        if self.is_scaled:
            a_B11 = last_BKD.square().mean((1, 2), keepdim=True).sqrt().clamp(min=LEAST_AMPLITUDE)
            x_BKD, c_BC = x_BKD / a_B11, torch.cat([c_BC, a_B11[:, 0].log()], -1)
        increment_BKD = self._update(x_BKD, c_BC)
        if self.is_scaled:
            increment_BKD = a_B11 * increment_BKD
        if self.conserves_mean:  # the first channel is the mean of a patch
            mean_BKD = increment_BKD.mean(1, keepdim=True)
            increment_BKD = increment_BKD - F.pad(mean_BKD[..., :1], (0, mean_BKD.shape[-1] - 1))
        return last_BKD + increment_BKD

    def _update(self, x_BKD: Tensor, condition_BC: Tensor) -> Tensor:
        c_BW = self.condition(condition_BC)
        x = self.embed(x_BKD)
        num_down = len(self.merge)
        skips: list[Tensor] = []
        for i, stage in enumerate(self.stages):
            if i > num_down:
                x = self.split[i - num_down - 1](x).unflatten(-1, (2, -1)).flatten(1, 2)
                x = self.skip[i - num_down - 1](torch.cat([x, skips.pop()], -1))
            for block in cast(nn.ModuleList, stage):
                x = block(x, c_BW)
            if i < num_down:
                skips.append(x)
                x = self.merge[i](x.unflatten(1, (-1, 2)).flatten(2))
        return cast(Tensor, self.head(self.norm(x)))


class TokenMixing(nn.Linear):
    """A circular convolution over the tokens, as one product; of kernel 1 a linear layer."""

    def __init__(self, dim_in: int, dim_out: int, kernel: int) -> None:
        super().__init__(kernel * dim_in, dim_out)
        self._shifts = [kernel // 2 - i for i in range(kernel)]

    def forward(self, x_BKD: Tensor) -> Tensor:
        if len(self._shifts) == 1:
            return super().forward(x_BKD)
        return super().forward(torch.cat([x_BKD.roll(shift, 1) for shift in self._shifts], -1))


class Block(nn.Module):
    """Attention and MLP, both modulated by the conditioning (AdaLN-zero, Peebles & Xie 2023)."""

    cos: Tensor
    sin: Tensor

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, tokens: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        hidden = int(width * mlp_ratio)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width)
        )
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        cos, sin = _circular_rotary(tokens, width // num_heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, x_BKW: Tensor, c_BW: Tensor) -> Tensor:
        modulation = self.modulation(c_BW).unsqueeze(1).chunk(6, -1)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation
        x_BKW = x_BKW + gate_a * self._attend(_norm(x_BKW) * (1 + scale_a) + shift_a)
        return x_BKW + cast(Tensor, gate_m * self.mlp(_norm(x_BKW) * (1 + scale_m) + shift_m))

    def _attend(self, x_BKW: Tensor) -> Tensor:
        qkv = self.qkv(x_BKW).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self._rotate(qkv[:2]).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, qkv[2])
        return cast(Tensor, self.out(mixed.transpose(1, 2).flatten(2)))

    def _rotate(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        cos, sin = self.cos.to(x.dtype), self.sin.to(x.dtype)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])


def _circular_rotary(tokens: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """cos and sin, (K, head_dim / 2): whole-number frequencies, so position K is position 0."""
    frequency = torch.arange(head_dim // 2) % (tokens // 2 + 1)
    angle = 2 * math.pi / tokens * torch.outer(torch.arange(tokens), frequency)
    return angle.cos(), angle.sin()
