"""The one optimizer step that training repeats, and the batches that it takes."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ups.config import RunConfig
from ups.latents.datasets import LatentDataset
from ups.latents.on_disk import DiskCacheDataset
from ups.latents.order import first_epoch_windows
from ups.latents.partly_resident import PartlyResidentDataset
from ups.machine.devices import check_compile, limit_torch_threads, training_device
from ups.models.build import build_operator
from ups.models.conditioning import num_conditions
from ups.training.optimizer import AdamW, Schedule

WARM_UP_FRAMES = 201
EPS = 1e-8
LEAST_SHARE = 1e-12  # where the error is zero, its root has no slope


class TrainStep:
    """One optimizer step on the next batch of trajectories: eager, compiled, or as a CUDA graph.

    Use: `begin` once, `begin_epoch` for each epoch, then a call for each of its steps. In a step
    nothing waits for the host: indices, learning rate and averaging weight are of the device.

    Attributes:
        model, ema: the operator that is trained, and the moving average of its weights.
        averages: what of that average this process keeps up.
        micro_batch: trajectories or pairs of a forward and backward.
        loss_sum: () on the device; the losses since it was last set to zero.
        feed, num_items: what draws the batches, and of how many trajectories or pairs an epoch is.
    """

    def __init__(self, config: RunConfig) -> None:
        check_compile(config)
        limit_torch_threads()
        self.config, self.device = config, training_device(config)
        torch.manual_seed(config.training.seed)
        self.model = build_operator(config)
        self.ema, self.averages = self._put_on_device()
        self.loss_sum = torch.zeros((), device=self.device)
        self._loss_here = self.loss_sum  # where a batch's loss is added
        self.schedule = Schedule(config, self.device)
        self.optimizer = AdamW(
            self.model.parameters(), self.schedule.lr, config.stages.operator.optimizer
        )
        self.operator: Any = self.model
        if config.training.compile == "inductor":
            self.operator = torch.compile(self.model)
        self.micro_batch = config.training.pairs_per_step or config.training.batch_size
        self.items_per_step = config.training.items_per_step
        self._place, self.num_items = 0, 0
        self.feed: Feed | None = None
        self._graphs: dict[int, _Graph] = {}
        self._stream = torch.cuda.Stream() if config.training.compile == "graph" else None
        bf16 = ("bf16", "auto") if self.device == "cuda" else ("bf16",)
        self.bf16 = config.training.precision in bf16

    def multiplications(self, data: LatentDataset) -> float:
        """Of a step on full batches, about: each weight meets each token of each pair."""
        pairs = self.micro_batch
        if num_starts(data, self.config) is None:
            pairs *= data.num_frames - window_frames(self.config) + 1
        num_weights = sum(p.numel() for p in self.model.parameters())
        return float(pairs * self.config.latent.tokens * num_weights)

    def begin(self, data: LatentDataset, total_steps: int, taken: int = 0) -> None:
        """Train on `data`, by the schedule of `total_steps` of which some were taken before."""
        if self.feed is None or self.feed.data is not data:
            self.num_items = len(data) * (num_starts(data, self.config) or 1)
            self.feed = Feed(data, self.config, self.device, self._num_of_epoch())
            self._graphs.clear()
        self.schedule.begin(taken, total_steps)

    def begin_epoch(self, order_M: Tensor, first_batch: int = 0) -> None:
        """Go through the data in this order, of `epoch_order`."""
        assert self.feed is not None, "begin comes before begin_epoch"
        self._place = first_batch * self.items_per_step
        self.feed.begin_epoch(order_M, self._place)

    def __call__(self) -> None:
        """Take the next step of the epoch."""
        assert self.feed is not None, "begin comes before a step"
        num = min(self.items_per_step, self.num_items - self._place)
        self._place += num
        own = self._own(num)
        if self.config.training.compile == "graph":
            if num not in self._graphs:
                self._graphs[num] = _Graph(self, self.feed, own, own / num)
            self._graphs[num].take()
            return
        self.schedule.advance()
        self._accumulate_batch(self.feed, own, num)
        self._update()

    def _put_on_device(self) -> tuple[nn.Module, list[Tensor]]:
        """Put the model on the device; its average, and what of that this process keeps up."""
        self.model.to(self.device)
        ema = copy.deepcopy(self.model).requires_grad_(False)
        return ema, list(ema.parameters())

    def _accumulate_batch(self, feed: Feed, own: int, num: int) -> None:
        """Add up the gradients of `own` of a step's `num` items."""
        for first in range(0, own, self.micro_batch):
            micro = min(self.micro_batch, own - first)
            self.accumulate(*feed.draw(micro), micro / num)

    def _own(self, num: int) -> int:
        """How many of a step's items this process takes."""
        return num

    def _num_of_epoch(self) -> int:
        """How many items this process takes in an epoch."""
        return self.num_items

    def _reduce(self) -> None:
        """Bring the gradients of the batch together, once they are all there."""

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
        if training.pairs_per_step is not None or frames < window_frames(self.config):
            frames = window_frames(self.config)
        shape = (self.micro_batch, frames, latent.tokens, latent.dim)
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

    @contextlib.contextmanager
    def average(self) -> Iterator[nn.Module]:
        """The averaged model, whole, to predict with."""
        yield self.ema

    @property
    def state_device(self) -> str:
        """Where `load_state_dict` wants the state to be."""
        return self.device

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

    def whole(self, z_BTKD: Tensor, condition_BC: Tensor, share: float = 1.0) -> None:
        """Schedule, forward, backward, clip, optimizer and average on one batch.

        Args:
            share: of the step's items that are in it.
        """
        self.schedule.advance()
        if len(z_BTKD):
            self.accumulate(z_BTKD, condition_BC, share)
        self._update()

    def accumulate(self, z_BTKD: Tensor, condition_BC: Tensor, share: float) -> None:
        """Add the gradients of a part of a batch, and its loss."""
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            loss = self._loss(z_BTKD, condition_BC) * share
        loss.backward()
        self._loss_here += loss.detach()

    def _loss(self, z_BTKD: Tensor, condition_BC: Tensor) -> Tensor:
        """Relative L2 error, averaged over pairs and horizon."""
        horizon, history = self.config.training.rollout_horizon, self.config.operator.history
        starts = z_BTKD.shape[1] - history - horizon + 1
        condition = condition_BC.repeat_interleave(starts, 0)
        window = windows(z_BTKD[:, : starts + history - 1], history).float()
        loss = window.new_zeros(())
        for j in range(history, history + horizon):
            z = self.operator(window, condition)
            target = z_BTKD[:, j : j + starts].flatten(0, 1).float()
            share_B = (z - target).square().sum((1, 2)) / (target.square().sum((1, 2)) + EPS)
            loss = loss + (share_B + LEAST_SHARE).sqrt().mean()
            window = torch.cat([window[:, 1:], z.unsqueeze(1)], 1)
        return loss / horizon

    def _update(self) -> None:
        self._reduce()
        live = self.optimizer.parameters
        torch.nn.utils.clip_grad_norm_(live, self.config.training.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            drift = torch._foreach_sub(live, self.averages)
            torch._foreach_mul_(drift, self.schedule.ema_weight)
            torch._foreach_add_(self.averages, list(drift))


def window_frames(config: RunConfig) -> int:
    """F, the frames that a pair is made of: the history, and the targets of the horizon."""
    return config.operator.history + config.training.rollout_horizon


def num_starts(data: LatentDataset, config: RunConfig) -> int | None:
    """The pairs of a trajectory; None where a batch takes whole trajectories."""
    if config.training.pairs_per_step is None:
        return None
    return data.num_frames - window_frames(config) + 1


def epoch_order(data: LatentDataset, config: RunConfig, epoch: int) -> Tensor:
    """(M,) what an epoch takes, one after another, on the CPU.

    Of whole trajectories each once, shuffled. Of pairs as many as there are: every trajectory, all
    of them shuffled, again and again, and of each the start that the dice give, as the number
    trajectory · starts + start. The first epoch does so with one window of trajectories after the
    other, see `order`. A function of seed and epoch alone.
    """
    generator = torch.Generator().manual_seed(config.training.seed * 1_000_003 + epoch)
    starts = num_starts(data, config)
    windows = [np.arange(len(data))]
    if epoch == 0:
        windows = first_epoch_windows(len(data), config.training.seed)
    trajectories = torch.cat(
        [
            torch.from_numpy(window)[torch.randperm(len(window), generator=generator)]
            for window in windows
            for _ in range(starts or 1)
        ]
    )
    if starts is None:
        return trajectories
    weights = torch.arange(1, starts + 1, dtype=torch.float64) ** -config.training.early_pairs
    drawn = weights.multinomial(len(trajectories), replacement=True, generator=generator)
    return trajectories * starts + drawn


class Feed:
    """Draws batches in the order of an epoch, by an index that lies beside the latents.

    Where the latents are on the training device, drawing a batch is work of the device alone, and
    a captured CUDA graph can hold it.

    Args:
        num: M, what an epoch takes here, trajectories or pairs; default all.
    """

    def __init__(
        self, data: LatentDataset, config: RunConfig, device: str, num: int | None = None
    ) -> None:
        self.data, self._device = data, device
        self._starts = num_starts(data, config)
        self.is_resident = data.index_device == device
        if num is None:
            num = len(data) * (self._starts or 1)
        self._order_M = torch.arange(num, device=data.index_device)
        self._next = torch.zeros((), dtype=torch.int64, device=data.index_device)
        self._window_F = torch.arange(window_frames(config), device=data.index_device)

    def __len__(self) -> int:
        """M, what an epoch takes here."""
        return len(self._order_M)

    def begin_epoch(self, order_M: Tensor, first: int) -> None:
        """Draw in this order, of `epoch_order`, from place `first` of it."""
        self._order_M.copy_(order_M)
        self._next.fill_(first)

    def draw(self, num: int) -> tuple[Tensor, Tensor]:
        """The next `num` trajectories, or pairs, and their conditioning (B, C).

        Trajectories are (B, T', K, D) as stored, pairs (B, F, K, D).
        """
        places = self._next + torch.arange(num, device=self._next.device)
        index_B, frames_BF = self._split(self._order_M.index_select(0, places))
        self._next += num
        condition_BC = self.data.condition_NC.index_select(0, index_B)
        batch = self.data.batch(index_B, frames_BF)
        if isinstance(self.data, DiskCacheDataset | PartlyResidentDataset):
            # The disk works while this batch is trained on.
            self.data.will_need(*self._split(self._order_M[int(self._next) :][:num]))
        return batch, condition_BC.to(self._device, non_blocking=True)

    def _split(self, order_B: Tensor) -> tuple[Tensor, Tensor | None]:
        """Trajectories, and of pairs which of their frames."""
        if self._starts is None:
            return order_B, None
        frames_BF = (order_B % self._starts)[:, None] + self._window_F
        return order_B // self._starts, frames_BF


class _Graph:
    """A whole step on `num` trajectories: taken eagerly once, then captured, then replayed.

    The eager step is a real one: it warms up what must not happen in a capture. Latents in the
    device's memory are gathered by the graph itself; others pass through a buffer that it reads.
    """

    def __init__(self, step: TrainStep, feed: Feed, num: int, share: float) -> None:
        self._step, self._feed, self._num, self._share = step, feed, num, share
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
        self._step.whole(*(self._buffers or self._feed.draw(self._num)), self._share)

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
