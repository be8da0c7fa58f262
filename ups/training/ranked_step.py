"""An optimizer step that several processes take together, each on its part of the batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ups.config import RunConfig
from ups.training.ranks import Ranks
from ups.training.step import TrainStep

ALIGNED = 4  # floats: each gradient begins where the kernels like it
LAG = 8  # steps that a GPU may be behind the host


class RankedStep(TrainStep):
    """A step whose gradients, loss and wishes to stop are summed over all ranks.

    The batch stays the config's: of each step a rank takes its slice. All gradients are views of
    one buffer, so that one `all_reduce` does it, inside of what a CUDA graph captures. Behind them
    stand the batch's loss and whether a rank wants to stop: so all of them learn it of the same
    step, and nobody waits for that.
    """

    def __init__(self, config: RunConfig, ranks: Ranks) -> None:
        self.ranks = ranks
        super().__init__(config)
        self._flat = self._row_of_gradients()
        self._loss_here, self._stop_here = self._flat[-2], self._flat[-1]
        self._wish, self._num_wishes = (torch.zeros((), device=self.device) for _ in range(2))
        self._answers = _Answers(LAG if self.device == "cuda" else 1)

    def _row_of_gradients(self) -> Tensor:
        """What is summed in a step: all gradients, the batch's loss, the wishes to stop."""
        live = self.optimizer.parameters
        sizes = [p.numel() * (2 if p.is_complex() else 1) for p in live]
        places = [0]
        for size in sizes:
            places.append(places[-1] + -(-size // ALIGNED) * ALIGNED)
        row = torch.zeros(places[-1] + 2, device=self.device)
        for p, first, size in zip(live, places, sizes, strict=False):
            flat = row[first : first + size]
            pairs = p.is_complex()
            p.grad = torch.view_as_complex(flat.view(*p.shape, 2)) if pairs else flat.view_as(p)
        return row

    def take_from_first(self) -> None:
        """Go on from what rank 0 has loaded."""
        self.ranks.take_from_first(*tensors_in(self.state_dict()))

    def begin_epoch(self, order_M: Tensor, first_batch: int = 0) -> None:
        assert self.feed is not None, "begin comes before begin_epoch"
        self._place = first_batch * self.items_per_step
        own = [batch[self._slice(len(batch))] for batch in order_M.split(self.items_per_step)]
        self.feed.begin_epoch(torch.cat(own), first_batch * self._own(self.items_per_step))

    def __call__(self) -> None:
        super().__call__()
        self._answers.ask(self._num_wishes)

    def wish_to_stop(self) -> None:
        """Have all ranks know, from the next step on, that this one wants to stop."""
        self._wish.fill_(1)

    def has_to_stop(self) -> bool:
        """Whether some rank wanted to: the same answer on all ranks before the same step."""
        return self._answers.oldest() > 0

    def _own(self, num: int) -> int:
        own = self._slice(num)
        return int(own.stop - own.start)

    def _slice(self, num: int) -> slice:
        """Which of the items of a step are this rank's: as one process would accumulate them.

        So the last batch of an epoch, which may be smaller, is divided as its accumulations are.
        """
        most = -(-self.items_per_step // self.ranks.world)
        first = min(num, self.ranks.rank * most)
        return slice(first, min(num, first + most))

    def _num_of_epoch(self) -> int:
        whole, rest = divmod(self.num_items, self.items_per_step)
        return whole * self._own(self.items_per_step) + self._own(rest)

    def _reduce(self) -> None:
        self._stop_here.copy_(self._wish)
        self.ranks.sum(self._flat)
        self.loss_sum += self._loss_here
        self._num_wishes.copy_(self._stop_here)
        self._loss_here.zero_()


def tensors_in(state: Any) -> Iterator[Tensor]:
    """All that are in it, in the same order on all ranks."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict):
        for name in state:
            yield from tensors_in(state[name])
    elif isinstance(state, list):
        for member in state:
            yield from tensors_in(member)


class _Answers:
    """Small numbers that the device computes each step, read so late that nobody waits for them."""

    def __init__(self, lag: int) -> None:
        self._slots: list[tuple[Tensor, torch.cuda.Event | None]] = []
        self._lag, self._num = lag, 0

    def ask(self, number: Tensor) -> None:
        """Have the number of the step that was just taken brought to the host."""
        if len(self._slots) < self._lag:
            on_gpu = number.is_cuda
            slot = torch.zeros((), pin_memory=on_gpu), torch.cuda.Event() if on_gpu else None
            self._slots.append(slot)
        host, event = self._slots[self._num % self._lag]
        host.copy_(number, non_blocking=True)
        if event is not None:
            event.record()
        self._num += 1

    def oldest(self) -> float:
        """That of `lag` steps ago; 0 before."""
        if self._num < self._lag:
            return 0.0
        host, event = self._slots[self._num % self._lag]
        if event is not None:
            event.synchronize()
        return host.item()
