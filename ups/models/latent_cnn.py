"""The latent CNN: residual blocks of circular convolutions over the tokens of a frame.

A step carries the field past a token or two, so what a token becomes is told by its neighbours.
For the same seconds of training it errs half as much as the latent transformer, whose attention
looks at all tokens: docs/operators.md.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ups.config import LatentCNN, RunConfig
from ups.models.latent import LatentOperator, TokenConvolution, normalised

# B batch, K tokens, W width


class Operator(LatentOperator):
    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        op = config.operator
        assert isinstance(op, LatentCNN)
        self.blocks = nn.ModuleList(
            Block(op.hidden_dim, op.mlp_ratio, op.token_kernel) for _ in range(op.num_blocks)
        )
        # One product for all blocks: on a CPU each operation costs more than these numbers.
        self.modulation = nn.Linear(op.hidden_dim, op.num_blocks * 3 * op.hidden_dim)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def update(self, x_BKW: Tensor, c_BW: Tensor) -> Tensor:
        parts = self.modulation(c_BW).unsqueeze(1).chunk(3 * len(self.blocks), -1)
        for i, block in enumerate(self.blocks):
            x_BKW = block(x_BKW, *parts[3 * i : 3 * i + 3])
        return x_BKW


class Block(nn.Module):
    """Convolution, GELU, linear; modulated by the conditioning (AdaLN-zero, Peebles & Xie 2023)."""

    def __init__(self, width: int, mlp_ratio: float, kernel: int) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.convolution = TokenConvolution(width, hidden, kernel)
        self.linear = nn.Linear(hidden, width)

    def forward(
        self, x_BKW: Tensor, shift_B1W: Tensor, scale_B1W: Tensor, gate_B1W: Tensor
    ) -> Tensor:
        y = torch.addcmul(shift_B1W, normalised(x_BKW), 1 + scale_B1W)
        y = F.gelu(self.convolution(y), approximate="tanh")
        return torch.addcmul(x_BKW, gate_B1W, self.linear(y))
