"""The latent transformer: a U over the tokens of a frame.

Attention sees only the circular distance of two tokens (rotary embedding with whole-number
frequencies), and the tokens halve per stage of the U.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ups.config import LatentTransformer, RunConfig
from ups.models.latent import LatentOperator, normalised

# B batch, K tokens, W width


class Operator(LatentOperator):
    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        op, tokens = config.operator, config.latent.tokens
        assert isinstance(op, LatentTransformer)
        width, levels = op.hidden_dim, op.num_levels
        sizes = [tokens >> min(i, len(op.depths) - 1 - i) for i in range(len(op.depths))]
        self.stages = nn.ModuleList(
            nn.ModuleList(Block(width, op.num_heads, op.mlp_ratio, size) for _ in range(depth))
            for depth, size in zip(op.depths, sizes, strict=True)
        )
        self.merge = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(levels - 1))
        self.split = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(levels - 1))
        self.skip = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(levels - 1))

    def update(self, x_BKW: Tensor, c_BW: Tensor) -> Tensor:
        x, num_down = x_BKW, len(self.merge)
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
        return x


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
        x_BKW = x_BKW + gate_a * self._attend(normalised(x_BKW) * (1 + scale_a) + shift_a)
        return x_BKW + cast(Tensor, gate_m * self.mlp(normalised(x_BKW) * (1 + scale_m) + shift_m))

    def _attend(self, x_BKW: Tensor) -> Tensor:
        qkv = self.qkv(x_BKW).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self._rotate(qkv[:2]).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, qkv[2])
        return cast(Tensor, self.out(mixed.transpose(1, 2).flatten(2)))

    def _rotate(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        cos, sin = self.cos.to(x.dtype), self.sin.to(x.dtype)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def _circular_rotary(tokens: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """cos and sin, (K, head_dim / 2): whole-number frequencies, so position K is position 0."""
    frequency = torch.arange(head_dim // 2) % (tokens // 2 + 1)
    angle = 2 * math.pi / tokens * torch.outer(torch.arange(tokens), frequency)
    return angle.cos(), angle.sin()
