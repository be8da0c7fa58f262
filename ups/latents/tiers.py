"""Where latents are kept for training, by what has room: GPU memory, RAM, or the disk.

Nothing here imports torch, unless the GPU's memory has to be asked for.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from ups.config import RunConfig
from ups.machine.memory import available_ram_mb, check_sufficient_ram
from ups.machine.ranks import num_ranks

GPU_RESERVE_BYTES = 4 << 30

TierName = Literal["gpu", "ram", "disk"]


class Tier(NamedTuple):
    """Where latents go, and a line for each place wanted before that has no room for them.

    Attributes:
        kept_mb: of latents that have no room in the GPU's memory, what of them stays there
            nevertheless; the others come from this tier.
    """

    name: TierName
    stepped_down: tuple[str, ...] = ()
    kept_mb: float = 0.0


def resident_mb(config: RunConfig, num_bytes: int) -> float:
    """What of `num_bytes` of stored latents stays in memory: every s-th frame."""
    return num_bytes / config.training.time_stride / 1e6


def free_gpu_mb() -> float:
    """Free memory of the GPU; creates a CUDA context where there is none."""
    import torch

    return float(torch.cuda.mem_get_info()[0]) / 1e6


def is_mapped(
    config: RunConfig, tier: TierName, num_bytes: int, device: str, ram_mb: float | None = None
) -> bool:
    """Whether stored latents in RAM are those of the page cache, read through a map of the files.

    Then all frames lie there, not every s-th one. Ranks of one machine have the map in common.

    Args:
        tier: that was chosen.
        num_bytes, device, ram_mb: see `choose_tier`.
    """
    if tier != "ram" or device != "cpu":
        return False
    if config.features.preload != "auto" and num_ranks(config) == 1:
        return False
    free_mb = available_ram_mb() if ram_mb is None else ram_mb
    return check_sufficient_ram(num_bytes / 1e6, available_mb=free_mb)


def choose_tier(
    config: RunConfig,
    num_bytes: int,
    device: str,
    *,
    gpu_mb: float | None = None,
    ram_mb: float | None = None,
) -> Tier:
    """The first one, from what the config allows down, that has room.

    Args:
        num_bytes: of the latents as stored.
        device: that training runs on, `cuda` or `cpu`.
        gpu_mb, ram_mb: free memory; None: asked for where it matters.
    """
    wanted, needed_mb = config.features.preload, resident_mb(config, num_bytes)
    reasons, kept_mb = [], 0.0
    if device == "cuda" and wanted in ("auto", "gpu"):
        free_mb = (free_gpu_mb() if gpu_mb is None else gpu_mb) - GPU_RESERVE_BYTES / 1e6
        if needed_mb <= free_mb:
            return Tier("gpu")
        kept_mb = max(0.0, free_mb)
        reasons.append(
            f"latents of {needed_mb:.0f} MB do not fit into the {free_mb:.0f} MB of GPU memory "
            f"beside the model: {_instead('trying RAM instead', kept_mb)}"
        )
    elif wanted == "gpu":
        reasons.append(f"features.preload is gpu and the device is {device}: trying RAM instead")
    if wanted != "disk" and device == "cuda" and num_ranks(config) > 1:
        reasons.append("a copy in RAM for each rank is too much: reading the files they share")
    elif wanted != "disk":
        free_mb = available_ram_mb() if ram_mb is None else ram_mb
        if check_sufficient_ram(needed_mb, available_mb=free_mb):
            return Tier("ram", tuple(reasons), kept_mb)
        reasons.append(
            f"latents of {needed_mb:.0f} MB do not fit into the {free_mb:.0f} MB of available RAM: "
            "reading them from disk instead"
        )
    return Tier("disk", tuple(reasons), kept_mb)


def _instead(what: str, kept_mb: float) -> str:
    return what if kept_mb < 1 else f"{kept_mb:.0f} MB stay there; for the rest, {what}"
