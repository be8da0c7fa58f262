"""Memory: where the latents go, and whether the operator that is trained fits beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ups.config import RunConfig
from ups.latents.key import ENCODED_SPLITS
from ups.latents.tiers import choose_tier, free_gpu_mb, is_mapped, resident_mb
from ups.machine.memory import available_ram_mb, cgroup_headroom_bytes, check_sufficient_ram
from ups.units import format_size
from ups.validate.check import Check, Checks
from ups.validate.sources import NUM_FRAMES, Sources, latent_bytes, select

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

PLACES = {"gpu": "GPU memory", "ram": "RAM", "disk": "the disk, read batch by batch"}
STATE_COPIES = 5  # weights, gradients, two moments, moving average; all float32
ITEM_BYTES = 4  # of one; a complex parameter counts as two


@dataclass(frozen=True, slots=True)
class Memory:
    """What is free, in MB.

    Attributes:
        gpu_mb: None without a GPU, and where it was not asked.
        is_limited: whether the limit of a container is less than what the machine has.
    """

    ram_mb: float
    gpu_mb: float | None = None
    is_limited: bool = False

    @classmethod
    def of_this_machine(cls, *, ask_gpu: bool) -> Memory:
        """What is free now.

        Args:
            ask_gpu: creates a CUDA context.
        """
        return cls(
            ram_mb=available_ram_mb(),
            gpu_mb=free_gpu_mb() if ask_gpu else None,
            is_limited=cgroup_headroom_bytes() is not None,
        )


def validate_ram_for_cache(
    config: RunConfig, sources: Sources, device: str, memory: Memory
) -> list[Check]:
    """What is free; last, where `load-latents` puts the latents, by the rule that it follows."""
    checks = Checks("memory")
    limit = " (the container's limit)" if memory.is_limited else ""
    checks.ok("RAM", f"{_mb(memory.ram_mb)} free{limit}", free_bytes=round(memory.ram_mb * 1e6))
    if memory.gpu_mb is not None:
        checks.ok("GPU", f"{_mb(memory.gpu_mb)} free", free_bytes=round(memory.gpu_mb * 1e6))
    num_bytes = latent_bytes(config, sources)
    if config.features.preload == "off" or config.features.is_legacy:
        reason = "features.preload is off" if config.features.preload == "off" else "legacy mode"
        checks.skip("latents", f"{reason}: none are kept in memory")
    elif num_bytes is None:
        checks.skip("latents", "their size is known when the number of trajectories is")
    elif device == "cuda" and memory.gpu_mb is None and config.features.preload in ("auto", "gpu"):
        checks.skip("latents", "what is free in the GPU is asked when they are loaded")
    else:
        tier = choose_tier(config, num_bytes, device, gpu_mb=memory.gpu_mb, ram_mb=memory.ram_mb)
        needed_mb = resident_mb(config, num_bytes)
        stride = config.training.time_stride
        of_all = f", frames 0, {stride}, … of {format_size(num_bytes)}" if stride > 1 else ""
        text = f"{_mb(needed_mb)}{of_all}, go to {PLACES[tier.name]}"
        if is_mapped(config, tier.name, num_bytes, device, memory.ram_mb):
            text += "; where the cache has them, its files are mapped instead"
        text += "".join(f"; {reason}" for reason in tier.stepped_down)
        add = checks.warn if tier.stepped_down else checks.ok
        add("latents", text, tier=tier.name, num_bytes=round(needed_mb * 1e6))
    return checks


def validate_training_memory(
    config: RunConfig, sources: Sources, device: str, memory: Memory
) -> list[Check]:
    """Weights, gradients, moments, average and activations of a batch, beside the latents."""
    checks = Checks("memory")
    encoded = select(sources, ENCODED_SPLITS)
    num_frames = encoded[0].num_frames if encoded else -(-NUM_FRAMES // config.encoder.t_stride)
    needed = footprint(config, num_frames, device)
    place, free_mb = "RAM", memory.ram_mb
    if device == "cuda" and memory.gpu_mb is not None:
        place, free_mb = "GPU", memory.gpu_mb
    text = (
        f"{needed.num_parameters:,} parameters, {format_size(needed.state_bytes)} with gradients, "
        f"moments and average; at least {format_size(needed.activation_bytes)} of activations"
    )
    needed_bytes, beside = needed.num_bytes, ""
    by_name = {c.name: c for c in validate_ram_for_cache(config, sources, device, memory)}
    latents = by_name["latents"].figures
    if latents.get("tier") == place.lower():
        needed_bytes += latents["num_bytes"]
        beside = f" beside {format_size(latents['num_bytes'])} of latents"
    instead = device == "cpu" and config.training.device == "cuda"
    note = " (for the CPU, as there is no GPU)" if instead else ""
    figures = {"num_bytes": needed.num_bytes, "num_parameters": needed.num_parameters}
    if check_sufficient_ram(needed_bytes / 1e6, margin=0, available_mb=free_mb):
        checks.ok("training", f"{text}{beside}{note}", **figures)
    else:
        checks.fault(
            "training",
            f"{text}{beside}: more than the {_mb(free_mb)} of {place} that are free; lower "
            f"training.batch_size or pairs_per_step, or take a smaller operator{note}",
            **figures,
        )
    return checks


@dataclass(frozen=True, slots=True)
class Footprint:
    """What the operator takes in memory while it is trained.

    Attributes:
        state_bytes: weights, gradients, moments and moving average.
        activation_bytes: what the forward pass of one batch keeps for the backward pass. With what
            that needs for a moment, the memory of a process grew by 1.3 times as much.
    """

    num_parameters: int
    state_bytes: int
    activation_bytes: int

    @property
    def num_bytes(self) -> int:
        """In all."""
        return self.state_bytes + self.activation_bytes


def footprint(config: RunConfig, num_frames: int, device: str) -> Footprint:
    """Count it on a pair or two.

    Args:
        num_frames: of a trajectory as stored.
        device: `cuda` or `cpu`; decides about the precision.
    """
    import torch

    from ups.models.build import build_operator

    training = config.training
    half = training.precision == "bf16" or (training.precision == "auto" and device == "cuda")
    model = build_operator(config)
    num_parameters = sum(p.nbytes for p in model.parameters()) // ITEM_BYTES
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        one, two = (_saved_bytes(model, config, num) for num in (1, 2))
    # A pair ends its history at each frame from which `rollout_horizon` steps are left.
    around = config.operator.history - 1 + training.rollout_horizon
    starts = -(-num_frames // training.time_stride) - around
    num_pairs = training.pairs_per_step or max(1, training.batch_size * starts)
    return Footprint(
        num_parameters=num_parameters,
        state_bytes=num_parameters * STATE_COPIES * ITEM_BYTES,
        activation_bytes=(one + (two - one) * (num_pairs - 1)) * training.rollout_horizon,
    )


def _saved_bytes(model: Module, config: RunConfig, num_pairs: int) -> int:
    """What one application of the operator keeps for the backward pass, without its weights."""
    import torch

    from ups.models.conditioning import num_conditions

    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = storage.nbytes()
        return tensor

    latent = config.latent
    z_BHKD = torch.zeros(num_pairs, config.operator.history, latent.tokens, latent.dim)
    condition_BC = torch.zeros(num_pairs, num_conditions(config.data.equations))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = model(z_BHKD, condition_BC)
    del out  # it holds what was saved until here, so no storage's address is used twice
    return sum(saved.values())


def _mb(megabytes: float) -> str:
    return format_size(round(megabytes * 1e6))
