"""What the training step could reach at best: its FLOPs and bytes, over measured ceilings.

FLOPs are counted by PyTorch's own counter over one eager step (matrix products and attention,
forward and backward). Bytes are those that the operations of one eager step read and write, each
counted as if nothing stayed in a cache: eager moves that much, fused kernels less, so for them
the share of the copy bandwidth is an upper estimate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from speed.measure import timed

MATMUL = {"cuda": 8192, "cpu": 768}
COPY_BYTES = {"cuda": 2 << 30, "cpu": 64 << 20}
TRIALS = 10


@dataclass(frozen=True, slots=True)
class Work:
    """FLOPs and bytes of one optimizer step."""

    flops: float
    num_bytes: float


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Measured on this device: a large matrix product, and a large copy (read + write)."""

    flops_s: float
    bytes_s: float

    def bound_s(self, work: Work) -> tuple[float, str]:
        """The least seconds that a step can take, and which of the two says so."""
        compute, memory = work.flops / self.flops_s, work.num_bytes / self.bytes_s
        return (compute, "compute") if compute >= memory else (memory, "memory")


class _Bytes(TorchDispatchMode):
    """Adds up the tensors that go into and come out of every operation that is no view."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        outputs = [t for t in tree_leaves(found) if isinstance(t, Tensor)]
        places = {t.untyped_storage().data_ptr() for t in inputs}
        fresh = [t for t in outputs if t.untyped_storage().data_ptr() not in places]
        written_in_place = func._schema.is_mutable
        if fresh or written_in_place or not outputs:
            self.total += sum(t.nbytes for t in (*inputs, *fresh))
        return found


def count(step: Callable[[], None]) -> Work:
    """FLOPs and bytes of one eager step, which is taken twice."""
    counter = FlopCounterMode(display=False)
    with counter:
        step()
    traffic = _Bytes()
    with traffic:
        step()
    return Work(float(counter.get_total_flops()), float(traffic.total))


def ceilings(device: str, dtype: torch.dtype) -> Ceilings:
    """What the device reaches at best in this dtype."""
    n = MATMUL[device]
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    product_s = _best(lambda: torch.mm(a, b), device)
    source = torch.zeros(COPY_BYTES[device], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_s = _best(lambda: target.copy_(source), device)
    return Ceilings(2 * n**3 / product_s, 2 * source.nbytes / copy_s)


def _best(work: Callable[[], object], device: str) -> float:
    """Seconds of the fastest of some trials."""
    work()
    return min(timed(work, device) for _ in range(TRIALS))
