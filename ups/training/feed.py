"""The batches of an epoch, in the order that was drawn for it."""

from __future__ import annotations

import torch
from torch import Tensor

from ups.latents.datasets import LatentDataset


class Feed:
    """Draws batches by an index that is kept beside the latents.

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
