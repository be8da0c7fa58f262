"""Learning rate and averaging weight of each step, computed on the device from a count kept there.

The host says nothing per step, so a captured CUDA graph goes on by itself.
"""

from __future__ import annotations

import math

import torch

from ups.config import RunConfig


class Schedule:
    """A linear warm-up and a cosine down to zero; an average that forgets its first steps.

    Attributes:
        lr: () learning rate of the current step.
        ema_weight: () what the moving average takes of the current weights.
    """

    def __init__(self, config: RunConfig, device: str) -> None:
        stage = config.stages.operator
        self._peak_lr, self._warm_up_share = stage.optimizer.lr, stage.warmup_fraction
        self._decay = config.training.ema_decay
        self.lr = torch.zeros((), device=device)
        self.ema_weight = torch.zeros((), device=device)
        self._taken, self._total, self._warm_up = (
            torch.ones((), dtype=torch.float64, device=device) for _ in range(3)
        )

    def begin(self, taken: int, total_steps: int) -> None:
        """Go on after `taken` of `total_steps`."""
        self._taken.fill_(taken)
        self._total.fill_(total_steps)
        self._warm_up.fill_(max(1, round(self._warm_up_share * total_steps)))

    def advance(self) -> None:
        """Set `lr` and `ema_weight` to those of the next step."""
        step, warm_up = self._taken, self._warm_up
        rising = (step + 1) / warm_up
        done = (step - warm_up) / (self._total - warm_up).clamp(min=1)
        falling = 0.5 * (1 + torch.cos(math.pi * done.clamp(max=1)))
        self.lr.copy_(self._peak_lr * torch.where(step < warm_up, rising, falling))
        decay = ((1 + step) / (10 + step)).clamp(max=self._decay)
        self.ema_weight.copy_(1 - decay)
        self._taken += 1
