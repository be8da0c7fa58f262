"""Latents of which a part stays in GPU memory, where all of them have no room there."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ups.config import RunConfig
from ups.latents.datasets import LatentDataset
from ups.latents.on_disk import DiskCacheDataset


class PartlyResidentDataset:
    """As many trajectories as there is room for stay in the GPU's memory; the others are read.

    A trajectory stays from when it is first wanted, so nothing is loaded before the first step, and
    none is given up for another: each epoch shuffles anew. On a CPU the page cache is as good a
    resident part: with memory for half of the latents the disk was asked for 68 % of an epoch's
    bytes, and with a part kept so for 62 %, while putting batches together from both took longer.

    Args:
        data: all latents, where what does not stay is read for each batch.
        num_rows: trajectories that there is room for, R.
        device: that training runs on.
    """

    index_device = "cpu"

    def __init__(self, data: LatentDataset, num_rows: int, device: str) -> None:
        self._data, self._num_rows, self._device = data, num_rows, device
        self.condition_NC, self.num_frames = data.condition_NC, data.num_frames
        self._kept_RTKD: Tensor | None = None
        self._num_kept = 0
        self._slot_N = torch.full((len(data),), -1)

    def __len__(self) -> int:
        return len(self._data)

    def batch(self, index_B: Tensor, frames_BF: Tensor | None = None) -> Tensor:
        self._keep(index_B)
        slot_B = self._slot_N[index_B]
        kept_B, others_B = ((slot_B >= 0) == is_kept for is_kept in (True, False))
        kept = self._gather(slot_B[kept_B], None if frames_BF is None else frames_BF[kept_B])
        if not others_B.any():
            return kept
        others = self._data.batch(
            index_B[others_B], None if frames_BF is None else frames_BF[others_B]
        )
        batch = others.new_empty(len(index_B), *others.shape[1:])
        for rows, is_its_B in ((kept, kept_B), (others, others_B)):
            batch.index_copy_(0, is_its_B.nonzero().flatten().to(batch.device), rows)
        return batch

    def will_need(self, index_B: Tensor, frames_BF: Tensor | None = None) -> None:
        """Have the disk begin to read what of these has to be read."""
        if not isinstance(self._data, DiskCacheDataset):
            return
        if self._num_kept < self._num_rows:  # it is read whole
            frames_BF = None
        is_read_B = self._slot_N[index_B] < 0
        if is_read_B.any():
            frames_BF = None if frames_BF is None else frames_BF[is_read_B]
            self._data.will_need(index_B[is_read_B], frames_BF)

    def _keep(self, index_B: Tensor) -> None:
        """Read what is wanted for the first time, while there is room for it."""
        room = self._num_rows - self._num_kept
        new_M = index_B[self._slot_N[index_B] < 0].unique()[:room]
        if not len(new_M):
            return
        z_MTKD = self._data.batch(new_M)
        if self._kept_RTKD is None:
            self._kept_RTKD = _allocate(self._num_rows, z_MTKD, self._device)
        end = self._num_kept + len(new_M)
        self._kept_RTKD[self._num_kept : end] = z_MTKD
        self._slot_N[new_M] = torch.arange(self._num_kept, end)
        self._num_kept = end

    def _gather(self, slot_B: Tensor, frames_BF: Tensor | None) -> Tensor:
        """(B, F, K, D) of what stays."""
        assert self._kept_RTKD is not None, "the first batch is kept"
        slot_B = slot_B.to(self._device)
        if frames_BF is None:
            return self._kept_RTKD.index_select(0, slot_B)
        places = (slot_B[:, None] * self.num_frames + frames_BF.to(self._device)).flatten()
        of_all = self._kept_RTKD.flatten(0, 1).index_select(0, places)
        return of_all.view(*frames_BF.shape, *self._kept_RTKD.shape[2:])


def keep_part(config: RunConfig, data: LatentDataset, kept_mb: float, device: str) -> LatentDataset:
    """The same latents, of which as many trajectories stay on the device as `kept_mb` hold."""
    dtype = getattr(torch, config.training.latent_cache_dtype)
    row_bytes = data.num_frames * config.latent.tokens * config.latent.dim * dtype.itemsize
    num_rows = min(len(data), int(kept_mb * 1e6 / row_bytes))
    return PartlyResidentDataset(data, num_rows, device) if num_rows else data


def _allocate(num_rows: int, like_MTKD: Tensor, device: str) -> Tensor:
    """(R, T, K, D) of the kind of `like_MTKD`; on a CPU a page is taken when it is written to."""
    shape = num_rows, *like_MTKD.shape[1:]
    if device != "cpu":
        return torch.empty(shape, dtype=like_MTKD.dtype, device=device)
    num_bytes = num_rows * like_MTKD[0].nbytes
    return torch.from_numpy(np.empty(num_bytes, np.uint8)).view(like_MTKD.dtype).view(shape)
