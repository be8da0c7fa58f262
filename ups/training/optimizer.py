"""AdamW through PyTorch's functional form, and the schedule of its rate.

`torch.optim.AdamW` imports `torch._dynamo` when it is constructed: 3.8 s of a cold start on the
two cores where this was measured, 0.01 s this way. The kernel is the same fused one. The state
keeps its addresses, which a captured CUDA graph holds. The schedule is computed on the device from
a count kept there: the host says nothing per step, so such a graph goes on by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from ups.config import Optimizer, RunConfig

EPS = 1e-8


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
        self._total.fill_(total_steps)
        self._warm_up.fill_(max(1, round(self._warm_up_share * total_steps)))
        self._taken.fill_(max(0, taken - 1))
        if taken:  # an epoch that has all its steps ends without another one
            self.advance()

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


class AdamW:
    """Decoupled weight decay on matrices, none on vectors (norms, biases).

    Args:
        lr: () on the device of the parameters; written by whoever schedules it.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: Tensor, settings: Optimizer) -> None:
        self.lr, self.settings = lr, settings
        self.parameters = list(parameters)
        self._groups = [
            (_Moments([p for p in self.parameters if p.ndim > 1]), settings.weight_decay),
            (_Moments([p for p in self.parameters if p.ndim <= 1]), 0.0),
        ]

    @torch.no_grad()
    def step(self) -> None:
        """Update the parameters from their gradients."""
        for moments, weight_decay in self._groups:
            adamw(
                moments.parameters,
                moments.gradients(),
                moments.mean,
                moments.square,
                [],
                moments.step,
                fused=True,
                capturable=self.lr.is_cuda,
                amsgrad=False,
                beta1=self.settings.betas[0],
                beta2=self.settings.betas[1],
                lr=self.lr,
                weight_decay=weight_decay,
                eps=EPS,
                maximize=False,
            )

    def zero_grad(self) -> None:
        """Zero the gradients where they are, without freeing them."""
        grads = [p.grad for p in self.parameters if p.grad is not None]
        if grads:
            torch._foreach_zero_(grads)

    def state_dict(self) -> dict[str, Any]:
        return {str(i): moments.state() for i, (moments, _) in enumerate(self._groups)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Copy a state into the tensors that are there."""
        for i, (moments, _) in enumerate(self._groups):
            for name, values in moments.state().items():
                for mine, saved in zip(values, state[str(i)][name], strict=True):
                    mine.copy_(saved)


class _Moments:
    """A group's parameters, the moving moments of their gradients, and their step counts.

    Complex ones are seen as pairs of real ones: the fused kernel knows no others.
    """

    def __init__(self, parameters: list[Tensor]) -> None:
        self._given = parameters
        self.parameters = [_as_real(p.detach()) for p in parameters]
        self.mean = [torch.zeros_like(p) for p in self.parameters]
        self.square = [torch.zeros_like(p) for p in self.parameters]
        self.step = [torch.zeros((), device=p.device) for p in parameters]

    def gradients(self) -> list[Tensor]:
        """Those of the parameters, where there are any."""
        return [_as_real(p.grad) for p in self._given if p.grad is not None]

    def state(self) -> dict[str, list[Tensor]]:
        return {"mean": self.mean, "square": self.square, "step": self.step}


def _as_real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
