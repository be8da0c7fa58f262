"""An optimizer step whose weights lie in parts on several processes: FSDP2 of torch.

Nobody imports this, and FSDP2 with it, whose config does not ask for it.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ups.config import RunConfig
from ups.models.conditioning import num_conditions
from ups.training.ranked_step import RankedStep
from ups.training.ranks import Ranks
from ups.training.step import Feed, window_frames

log = logging.getLogger(__name__)

TENSORS_OF_A_WEIGHT = 5  # itself, its gradient, two moments, its average


class ShardedStep(RankedStep):
    """A step whose weights, gradients, moments and average lie in equal parts on the ranks.

    A block's weights are put together where it computes with them, and its gradients are summed to
    where their parts belong. So all ranks take part in each forward and backward: one to which
    nothing of a batch is left computes on something made up, which counts for nothing. The average
    is put together for validation, as whoever predicts with an operator has it whole.
    """

    def __init__(self, config: RunConfig, ranks: Ranks) -> None:
        self._given: dict[str, Any] | None = None
        super().__init__(config, ranks)
        latent, num_features = config.latent, num_conditions(config.data.equations)
        shape = (1, window_frames(config), latent.tokens, latent.dim)
        self._made_up = (
            torch.ones(shape, device=self.device),
            torch.zeros(1, num_features, device=self.device),
        )

    @contextlib.contextmanager
    def average(self) -> Iterator[nn.Module]:
        weights = list(self.ema.parameters())
        for weight, part in zip(weights, self.averages, strict=True):
            assert isinstance(part, DTensor)
            weight.data = part.full_tensor()
        try:
            yield self.ema
        finally:
            _empty(self.ema)

    @property
    def state_device(self) -> str:
        return "cpu"

    def state_dict(self) -> dict[str, Any]:
        """The whole state, on the CPU of rank 0. All ranks take part; the others keep nothing."""
        state: dict[str, Any] = _gathered(self._parts(), keeps=self.ranks.rank == 0)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Have it ready for `take_from_first`, in which all ranks take part."""
        self._given = state

    @torch.no_grad()
    def take_from_first(self) -> None:
        given, self._given = self._given, None
        is_given = torch.tensor(float(given is not None), device=self.device)
        self.ranks.take_from_first(is_given)
        if is_given.item():  # otherwise all have drawn the same weights, from the same seed
            self._take(self._parts(), given)

    def _take(self, part: Any, whole: Any) -> None:
        """Copy rank 0's state, tensor by tensor, into the parts of this rank."""
        if not isinstance(part, Tensor):
            names = part if isinstance(part, dict) else range(len(part))
            for name in names:
                self._take(part[name], None if whole is None else whole[name])
            return
        if whole is None:
            tensor = torch.empty(part.shape, dtype=part.dtype, device=self.device)
        else:
            tensor = whole.to(self.device)
        self.ranks.take_from_first(tensor)
        if isinstance(part, DTensor):
            tensor = distribute_tensor(
                tensor, part.device_mesh, part.placements, src_data_rank=None
            )
        part.copy_(tensor)

    def _parts(self) -> dict[str, Any]:
        """The state as it lies here, of the names that it has whole."""
        names = [name for name, _ in self.ema.named_parameters()]
        return {
            "model": self.model.state_dict(),
            "ema": dict(zip(names, self.averages, strict=True)),
            "optimizer": self.optimizer.state_dict(),
        }

    def _put_on_device(self) -> tuple[nn.Module, list[Tensor]]:
        """Block by block: the whole model need not fit."""
        ema = copy.deepcopy(self.model).requires_grad_(False)
        mesh = init_device_mesh(self.device, (self.ranks.world,))
        lists = [module for module in self.model.modules() if isinstance(module, nn.ModuleList)]
        for block in [member for members in lists for member in members]:
            if not isinstance(block, nn.ModuleList) and any(block.children()):
                fully_shard(block, mesh=mesh)
        fully_shard(self.model, mesh=mesh)  # the rest: single layers, in a list or not
        for module in self.model.modules():
            if isinstance(module, FSDPModule):  # losses are shares of the batch's: a sum it is
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(enable=True)
        parts = [part.detach().clone() for part in self.model.parameters()]
        _log_parts(parts, self.ranks)
        _empty(ema)
        return ema.to(self.device), parts

    def _row_of_gradients(self) -> Tensor:
        """The gradients are summed by FSDP2."""
        return torch.zeros(2, device=self.device)

    def _accumulate_batch(self, feed: Feed, own: int, num: int) -> None:
        most = min(num, -(-self.items_per_step // self.ranks.world))  # of any rank
        for first in range(0, most, self.micro_batch):
            micro = min(self.micro_batch, own - first)
            if micro > 0:
                self.accumulate(*feed.draw(micro), micro / num)
            else:
                self.accumulate(*self._made_up, 0.0)


def _log_parts(parts: Sequence[Tensor], ranks: Ranks) -> None:
    """Say what a rank holds of what one process would hold alone."""
    here = sum(part.to_local().nbytes for part in parts if isinstance(part, DTensor))
    whole = sum(part.nbytes for part in parts)
    if ranks.rank == 0:
        log.info(
            "each of %d ranks holds %.1f of %.1f MB of weights, gradients, moments and average",
            ranks.world,
            TENSORS_OF_A_WEIGHT * here / 1e6,
            TENSORS_OF_A_WEIGHT * whole / 1e6,
        )


def _empty(module: nn.Module) -> None:
    """Free what its parameters hold."""
    for parameter in module.parameters():
        parameter.data = parameter.data.new_empty(0)


def _gathered(state: Any, *, keeps: bool) -> Any:
    """Each tensor whole, on the CPU of those that keep it."""
    if isinstance(state, DTensor):
        whole = state.full_tensor()
        return whole.cpu() if keeps else None
    if isinstance(state, dict):
        return {name: _gathered(member, keeps=keeps) for name, member in state.items()}
    return [_gathered(m, keeps=keeps) for m in state] if isinstance(state, list) else state
