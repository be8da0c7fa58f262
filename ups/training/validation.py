"""The error on val that picks the checkpoint: full rollouts, in normalised latents."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ups.config import RunConfig
from ups.latents.loader import Latents
from ups.training.metrics import is_zero, note_zeros, share_left_in
from ups.training.step import TrainStep, rollout

if TYPE_CHECKING:
    from ups.training.ranks import Ranks

# Of latents in float32. A rollout took 7 times as much with the latent CNN, 19 with the FNO and 32
# with the U-Net, in float32 on a CPU: half of what the choice of a tier leaves beside the latents.
GPU_BATCH_BYTES = 64 << 20
LEAST = 1e-7  # root mean square of a frame's latents, in deviations; float16 holds less as 0


@dataclass(slots=True)
class Val:
    """What validation came to.

    Attributes:
        nrmse: problem → nRMSE of full rollouts of the averaged model over its part of val.
        notes: lines about trajectories that cannot be scored.
    """

    nrmse: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def mean(self) -> float:
        """Over the problems."""
        return sum(self.nrmse.values()) / len(self.nrmse)


def batch_size(config: RunConfig, num_frames: int, device: str) -> int:
    """Trajectories that are rolled out at once: `evaluation.batch_size`, on a GPU more of them.

    Each batch launches the kernels of every step anew, and small ones take longer to launch than
    to compute: of the 1,000 trajectories of PDEBench's val 358,000 kernels an epoch in batches of
    32, and 78,000 so. On a CPU a larger batch would only move the score in its last digits. A
    function of the config alone, so that a resumed run scores as it did before.

    Args:
        num_frames: of a trajectory, after the time stride.
    """
    if device == "cpu":
        return config.evaluation.batch_size
    trajectory_bytes = 4 * num_frames * config.latent.tokens * config.latent.dim
    return max(config.evaluation.batch_size, GPU_BATCH_BYTES // trajectory_bytes)


@torch.no_grad()
def validate(
    step: TrainStep,
    latents: Latents,
    config: RunConfig,
    is_stopped: Callable[[], bool],
    ranks: Ranks | None = None,
) -> Val | None:
    """Roll out the averaged model from the given frames; None if stopped between two batches.

    Of several ranks each takes some of the batches; all come to the same, and all stop where one
    wants to.

    Raises:
        DataError: a problem's part of val holds nothing but zeros.
    """
    with step.average() as model:
        return _validate(model, step, latents, config, is_stopped, ranks)


def _validate(
    model: nn.Module,
    step: TrainStep,
    latents: Latents,
    config: RunConfig,
    is_stopped: Callable[[], bool],
    ranks: Ranks | None,
) -> Val | None:
    data, val = latents.val, Val()
    for problem, places in latents.val_ranges.items():
        at_once = batch_size(config, data.num_frames, step.device)
        if ranks is not None:  # a batch for each of them, at least
            at_once = min(at_once, -(-len(places) // ranks.world))
        every_N = torch.arange(places.start, places.stop, device=data.index_device)
        # of each trajectory: its error, and its frames that are zero; of some, the wish to stop
        found_2N = torch.zeros((2, len(places) + 1), device=step.device)
        for number, index_B in enumerate(every_N.split(at_once)):
            if ranks is not None and number % ranks.world != ranks.rank:
                continue
            if is_stopped():
                if ranks is None:
                    return None
                found_2N[0, -1] = 1
                break
            first = number * at_once
            batch_2B = torch.stack(_errors(model, step, latents, config, index_B))
            found_2N[:, first : first + len(index_B)] = batch_2B
        if ranks is not None:
            ranks.sum(found_2N)
            if found_2N[0, -1].item() > 0:
                return None
        error_N, zeros_N = found_2N[0, :-1], found_2N[1, :-1].long().cpu()
        num_frames = data.num_frames - config.given_frames
        total = torch.zeros((), device=step.device)
        for error_B in error_N.split(at_once):
            total += error_B.sum()
        where = f"val of {problem}"
        if note := note_zeros(where, zeros_N, num_frames, lambda i: f"trajectory {i}"):
            val.notes.append(note)
        nrmse = total.item() / len(places)
        if not math.isfinite(nrmse):
            bad = int((~error_N.isfinite()).int().argmax())
            val.notes.append(f"{where}: nRMSE is {nrmse}, from trajectory {bad} on")
        val.nrmse[problem] = nrmse * share_left_in(len(places) * num_frames, int(zeros_N.sum()))
    return val


def _errors(
    model: nn.Module, step: TrainStep, latents: Latents, config: RunConfig, index_B: Tensor
) -> tuple[Tensor, Tensor]:
    """(B,) twice: the nRMSE of each trajectory, and its frames that are zero, which have none."""
    data, given = latents.val, config.given_frames
    z_BTKD = data.batch(index_B).float()
    condition_BC = data.condition_NC[index_B].to(step.device)
    with torch.autocast(step.device, torch.bfloat16, enabled=step.bf16):
        start_BHKD = z_BTKD[:, given - config.operator.history : given]
        predicted = rollout(model, start_BHKD, condition_BC, z_BTKD.shape[1] - given)
    target = z_BTKD[:, given:].flatten(2)
    error = (predicted.flatten(2) - target).norm(dim=-1)
    zero_BT = is_zero(target, LEAST * target.shape[-1] ** 0.5)
    error_B = (error / target.norm(dim=-1)).masked_fill(zero_BT, 0).mean(1)
    return error_B, zero_BT.sum(1)
