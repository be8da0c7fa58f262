"""The one optimizer step that training repeats, and the batches that it takes."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ups.config import RunConfig
from ups.latents.datasets import LatentDataset
from ups.machine.devices import check_compile, limit_torch_threads, training_device
from ups.models.build import build_operator
from ups.models.conditioning import num_conditions
from ups.training.optimizer import AdamW, Schedule

WARM_UP_FRAMES = 201
EPS = 1e-8


class TrainStep:
    """One optimizer step on the next batch of trajectories: eager, compiled, or as a CUDA graph.

    Use: `begin` once, `begin_epoch` for each epoch, then a call for each of its steps. In a step
    nothing waits for the host: indices, learning rate and averaging weight are of the device.

    Attributes:
        model, ema: the operator that is trained, and the moving average of its weights.
        loss_sum: () on the device; the losses since it was last set to zero.
    """

    def __init__(self, config: RunConfig) -> None:
        check_compile(config)
        limit_torch_threads()
        self.config, self.device = config, training_device(config)
        torch.manual_seed(config.training.seed)
        self.model = build_operator(config).to(self.device)
        self.ema = copy.deepcopy(self.model).requires_grad_(False)
        self._averages: list[Tensor] = list(self.ema.parameters())
        self.loss_sum = torch.zeros((), device=self.device)
        self.schedule = Schedule(config, self.device)
        self.optimizer = AdamW(
            self.model.parameters(), self.schedule.lr, config.stages.operator.optimizer
        )
        self.operator: Any = self.model
        if config.training.compile == "inductor":
            self.operator = torch.compile(self.model)
        self.rows_per_step = config.training.batch_size * config.training.accumulation_steps
        self._row = 0
        self._feed: Feed | None = None
        self._graphs: dict[int, _Graph] = {}
        self._stream = torch.cuda.Stream() if config.training.compile == "graph" else None
        bf16 = ("bf16", "auto") if self.device == "cuda" else ("bf16",)
        self.bf16 = config.training.precision in bf16

    def begin(self, data: LatentDataset, total_steps: int, taken: int = 0) -> None:
        """Train on `data`, by the schedule of `total_steps` of which some were taken before."""
        if self._feed is None or self._feed.data is not data:
            self._feed = Feed(data, self.device)
            self._graphs.clear()
        self.schedule.begin(taken, total_steps)

    def begin_epoch(self, order_N: Tensor, first_batch: int = 0) -> None:
        """Go through the data in this order.

        Args:
            order_N: every trajectory once, on the data's `index_device`.
        """
        assert self._feed is not None, "begin comes before begin_epoch"
        self._row = first_batch * self.rows_per_step
        self._feed.begin_epoch(order_N, self._row)

    def __call__(self) -> None:
        """Take the next step of the epoch."""
        assert self._feed is not None, "begin comes before a step"
        num = min(self.rows_per_step, len(self._feed.data) - self._row)
        self._row += num
        if self.config.training.compile == "graph":
            if num not in self._graphs:
                self._graphs[num] = _Graph(self, self._feed, num)
            self._graphs[num].take()
            return
        self.schedule.advance()
        for first in range(0, num, self.config.training.batch_size):
            micro = min(self.config.training.batch_size, num - first)
            self._accumulate(*self._feed.draw(micro), micro / num)
        self._update()

    def warm_up(self) -> None:
        """Have loaded and compiled what the first step would otherwise wait for.

        Eagerly on a CPU that is nothing: a made-up step takes 0.10 s there, beside downloads that
        need the same cores, and shortens the first one by 0.03 s.
        """
        if self.device == "cuda" or self.config.training.compile != "off":
            self.take_made_up_step()

    def take_made_up_step(self) -> None:
        """Take a step on noise, and undo it."""
        before = copy.deepcopy(self.state_dict())
        training, latent = self.config.training, self.config.latent
        frames = -(-WARM_UP_FRAMES // (self.config.encoder.t_stride * training.time_stride))
        shape = (training.batch_size, frames, latent.tokens, latent.dim)
        dtype = getattr(torch, training.latent_cache_dtype)
        with self.on_stream():
            noise = torch.randn(shape, device=self.device).to(dtype)
            num_features = num_conditions(self.config.data.equations)
            self.whole(noise, torch.zeros(len(noise), num_features, device=self.device))
            self.load_state_dict(before)
            self.loss_sum.zero_()
        self.synchronize()

    @contextlib.contextmanager
    def on_stream(self) -> Iterator[None]:
        """The CUDA stream of a graph: what is captured has to be warmed up on the same one."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            torch.cuda.current_stream().wait_stream(self._stream)

    def synchronize(self) -> None:
        """Wait until the device has done what it was given."""
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

    def whole(self, z_BTKD: Tensor, condition_BC: Tensor) -> None:
        """Schedule, forward, backward, clip, optimizer and average on one batch."""
        self.schedule.advance()
        self._accumulate(z_BTKD, condition_BC, 1.0)
        self._update()

    def _accumulate(self, z_BTKD: Tensor, condition_BC: Tensor, share: float) -> None:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            loss = self._loss(z_BTKD, condition_BC) * share
        loss.backward()
        self.loss_sum += loss.detach()

    def _loss(self, z_BTKD: Tensor, condition_BC: Tensor) -> Tensor:
        """Squared error relative to the target's square, averaged over pairs and horizon."""
        horizon, history = self.config.training.rollout_horizon, self.config.operator.history
        starts = z_BTKD.shape[1] - history - horizon + 1
        condition = condition_BC.repeat_interleave(starts, 0)
        window = windows(z_BTKD[:, : starts + history - 1], history).float()
        loss = window.new_zeros(())
        for j in range(history, history + horizon):
            z = self.operator(window, condition)
            target = z_BTKD[:, j : j + starts].flatten(0, 1).float()
            error_B = (z - target).square().sum((1, 2)) / (target.square().sum((1, 2)) + EPS)
            loss = loss + error_B.mean()
            window = torch.cat([window[:, 1:], z.unsqueeze(1)], 1)
        return loss / horizon

    def _update(self) -> None:
        live = self.optimizer.parameters
        torch.nn.utils.clip_grad_norm_(live, self.config.training.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            drift = torch._foreach_sub(live, self._averages)
            torch._foreach_mul_(drift, self.schedule.ema_weight)
            torch._foreach_add_(self._averages, list(drift))


class Feed:
    """Draws batches in the order of an epoch, by an index that lies beside the latents.

    Where the latents are on the training device, drawing a batch is work of the device alone, and
    a captured CUDA graph can hold it.
    """

    def __init__(self, data: LatentDataset, device: str) -> None:
        self.data, self._device = data, device
        self.is_resident = data.index_device == device
        self._order_N = torch.arange(len(data), device=data.index_device)
        self._next = torch.zeros((), dtype=torch.int64, device=data.index_device)

    def begin_epoch(self, order_N: Tensor, first_row: int) -> None:
        """Draw in this order, from place `first_row` of it."""
        self._order_N.copy_(order_N)
        self._next.fill_(first_row)

    def draw(self, num: int) -> tuple[Tensor, Tensor]:
        """The next `num` trajectories: (B, T', K, D) as stored, and their conditioning (B, C)."""
        places = self._next + torch.arange(num, device=self._next.device)
        index_B = self._order_N.index_select(0, places)
        self._next += num
        condition_BC = self.data.condition_NC.index_select(0, index_B)
        return self.data.batch(index_B), condition_BC.to(self._device, non_blocking=True)


class _Graph:
    """A whole step on `num` trajectories: taken eagerly once, then captured, then replayed.

    The eager step is a real one: it warms up what must not happen in a capture. Latents in the
    device's memory are gathered by the graph itself; others pass through a buffer that it reads.
    """

    def __init__(self, step: TrainStep, feed: Feed, num: int) -> None:
        self._step, self._feed, self._num = step, feed, num
        self._buffers: tuple[Tensor, Tensor] | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._is_warm = False

    def take(self) -> None:
        if not self._feed.is_resident:
            self._fill_buffers()
        if not self._is_warm:
            self._whole()
            self._is_warm = True
            return
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            # thread_local: other threads may use the device meanwhile
            stream = torch.cuda.current_stream()
            with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
                self._whole()
        self._graph.replay()

    def _whole(self) -> None:
        self._step.whole(*(self._buffers or self._feed.draw(self._num)))

    def _fill_buffers(self) -> None:
        batch = self._feed.draw(self._num)
        if self._buffers is None:
            self._buffers = batch[0].clone(), batch[1].clone()
            return
        for buffer, tensor in zip(self._buffers, batch, strict=True):
            buffer.copy_(tensor)


def windows(z_BTKD: Tensor, history: int) -> Tensor:
    """Every `history` frames in a row: (B, T, K, D) → (B · (T - H + 1), H, K, D)."""
    starts = z_BTKD.shape[1] - history + 1
    return torch.stack([z_BTKD[:, i : i + starts] for i in range(history)], 2).flatten(0, 1)


def rollout(operator: Any, given_BHKD: Tensor, condition_BC: Tensor, num_steps: int) -> Tensor:
    """Feed predictions back: H given frames, (B, H, K, D) → (B, num_steps, K, D) after them."""
    window, predicted = given_BHKD, []
    for _ in range(num_steps):
        z = operator(window, condition_BC)
        predicted.append(z)
        window = torch.cat([window[:, 1:], z.unsqueeze(1)], 1)
    return torch.stack(predicted, 1)
