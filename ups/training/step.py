"""Model, optimizer and moving average, and the one optimizer step that training repeats."""

from __future__ import annotations

import copy
import logging
import math
import time
from typing import Any

import torch
from torch import Tensor

from ups.config import RunConfig
from ups.device import check_compile, training_device
from ups.latents.datasets import LatentDataset
from ups.models.operator import LatentOperator, conditioning
from ups.training.optimizer import AdamW

log = logging.getLogger(__name__)

WARM_UP_FRAMES = 201
GRAPH_WARM_UP_STEPS = 3
EPS = 1e-8


class TrainStep:
    """One optimizer step on a batch of trajectories, eager, compiled, or as a CUDA graph.

    Attributes:
        model, ema: the operator that is trained, and the moving average of its weights.
        loss_sum: () on the device; the losses since it was last set to zero.
    """

    def __init__(self, config: RunConfig) -> None:
        check_compile(config)
        self.config, self.device = config, training_device(config)
        torch.manual_seed(config.training.seed)
        self.model = LatentOperator(config).to(self.device)
        self.ema = copy.deepcopy(self.model).requires_grad_(False)
        self._averages: list[Tensor] = list(self.ema.parameters())
        self.lr = torch.zeros((), device=self.device)
        self.ema_weight = torch.zeros((), device=self.device)
        self.loss_sum = torch.zeros((), device=self.device)
        self.optimizer = AdamW(self.model.parameters(), self.lr, config.stages.operator.optimizer)
        self.operator: Any = self.model
        if config.training.compile == "inductor":
            self.operator = torch.compile(self.model)
        self._graphs: dict[tuple[torch.Size, torch.dtype], _Graph] = {}
        precision = config.training.precision
        on_gpu = self.device == "cuda"
        self.bf16 = precision == "bf16" or (precision == "auto" and on_gpu)

    def __call__(self, data: LatentDataset, index_B: Tensor, step: int, total_steps: int) -> None:
        """Take step `step` of `total_steps` on the trajectories `index_B` of `data`.

        Args:
            index_B: on `data.index_device`.
        """
        self.lr.fill_(self._lr_at(step, total_steps))
        decay = min(self.config.training.ema_decay, (1 + step) / (10 + step))
        self.ema_weight.fill_(1 - decay)
        for micro_B in index_B.split(self.config.training.batch_size):
            share = len(micro_B) / len(index_B)
            z_BTKD = data.batch(micro_B)
            nu_B = data.nu_N[micro_B].to(self.device, non_blocking=True)
            condition_BC = conditioning(nu_B, data.step_dt)
            if self.config.training.compile == "graph":
                self._replay(z_BTKD, condition_BC)
                return
            self._accumulate(z_BTKD, condition_BC, share)
        self._update()

    def warm_up(self) -> float:
        """Take a step on made-up data and undo it, so that the first real one finds all loaded.

        Returns: seconds.
        """
        started = time.monotonic()
        before = copy.deepcopy(self.state_dict())
        training, latent = self.config.training, self.config.latent
        frames = -(-WARM_UP_FRAMES // training.time_stride)
        shape = (training.batch_size, frames, latent.tokens, latent.dim)
        dtype = getattr(torch, training.latent_cache_dtype)
        noise = torch.randn(shape, device=self.device).to(dtype)
        condition_BC = conditioning(torch.full((len(noise),), 0.01, device=self.device), 0.01)
        if training.compile == "graph":
            self._replay(noise, condition_BC)
        else:
            self._accumulate(noise, condition_BC, 1.0)
            self._update()
        self.load_state_dict(before)
        self.loss_sum.zero_()
        self.synchronize()
        return time.monotonic() - started

    def synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Copy a state in place: tensors keep their addresses, which a captured graph holds."""
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])

    def _lr_at(self, step: int, total_steps: int) -> float:
        """Linear warm-up, then a cosine down to zero."""
        stage = self.config.stages.operator
        warm_up = max(1, round(stage.warmup_fraction * total_steps))
        if step < warm_up:
            return stage.optimizer.lr * (step + 1) / warm_up
        done = (step - warm_up) / max(1, total_steps - warm_up)
        return stage.optimizer.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    def _accumulate(self, z_BTKD: Tensor, condition_BC: Tensor, share: float) -> None:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            loss = self._loss(z_BTKD, condition_BC) * share
        loss.backward()
        self.loss_sum += loss.detach()

    def _loss(self, z_BTKD: Tensor, condition_BC: Tensor) -> Tensor:
        """Squared error relative to the target's square, averaged over pairs and horizon."""
        horizon = self.config.training.rollout_horizon
        starts = z_BTKD.shape[1] - horizon
        condition = condition_BC.repeat_interleave(starts, 0)
        z = z_BTKD[:, :starts].flatten(0, 1).float()
        loss = z.new_zeros(())
        for j in range(1, horizon + 1):
            z = self.operator(z, condition)
            target = z_BTKD[:, j : j + starts].flatten(0, 1).float()
            loss = loss + relative_error(z, target).mean()
        return loss / horizon

    def _update(self) -> None:
        live = self.optimizer.parameters
        torch.nn.utils.clip_grad_norm_(live, self.config.training.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            drift = torch._foreach_sub(live, self._averages)
            torch._foreach_mul_(drift, self.ema_weight)
            torch._foreach_add_(self._averages, list(drift))

    def _replay(self, z_BTKD: Tensor, condition_BC: Tensor) -> None:
        kind = z_BTKD.shape, z_BTKD.dtype
        if kind not in self._graphs:
            self._graphs[kind] = _Graph(self, z_BTKD, condition_BC)
        self._graphs[kind].replay(z_BTKD, condition_BC)


class _Graph:
    """Forward, backward, clip, optimizer and moving average of one batch shape, captured once."""

    def __init__(self, step: TrainStep, z_BTKD: Tensor, condition_BC: Tensor) -> None:
        self._z, self._condition = z_BTKD.clone(), condition_BC.clone()
        before = copy.deepcopy(step.state_dict())
        loss_before = step.loss_sum.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(GRAPH_WARM_UP_STEPS):
                step._accumulate(self._z, self._condition, 1.0)
                step._update()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        # thread_local: the data are loaded by another thread meanwhile
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            step._accumulate(self._z, self._condition, 1.0)
            step._update()
        step.load_state_dict(before)
        step.loss_sum.copy_(loss_before)

    def replay(self, z_BTKD: Tensor, condition_BC: Tensor) -> None:
        self._z.copy_(z_BTKD)
        self._condition.copy_(condition_BC)
        self._graph.replay()


def relative_error(prediction: Tensor, target: Tensor) -> Tensor:
    """(B, K, D) twice → (B,): squared error over the target's square."""
    error = (prediction - target).square().sum((1, 2))
    return error / (target.square().sum((1, 2)) + EPS)


def rollout(operator: Any, z0_BKD: Tensor, condition_BC: Tensor, num_steps: int) -> Tensor:
    """Feed predictions back: (B, K, D) → (B, num_steps + 1, K, D), the start included."""
    states = [z0_BKD]
    for _ in range(num_steps):
        states.append(operator(states[-1], condition_BC))
    return torch.stack(states, 1)
