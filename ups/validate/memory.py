"""Memory: where the latents go, and whether the operator that is trained fits beside them."""

from __future__ import annotations

from dataclasses import dataclass

from ups.config import Parsed
from ups.latents.key import ENCODED_SPLITS
from ups.latents.tiers import choose_tier, free_gpu_mb, resident_mb
from ups.telemetry.memory import available_ram_mb, cgroup_headroom_bytes, check_sufficient_ram
from ups.units import format_size
from ups.validate.check import Check, Checks, with_defaults
from ups.validate.sources import NUM_FRAMES, Sources, latent_bytes

LATENT_KEYS = ("latent", "training.latent_cache_dtype", "training.time_stride", "features.preload")
MODEL_KEYS = ("operator", "latent", "training.batch_size", "training.rollout_horizon")
PLACES = {"gpu": "GPU memory", "ram": "RAM", "disk": "the disk, read batch by batch"}


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
        """
        Args:
            ask_gpu: creates a CUDA context.
        """
        return cls(
            ram_mb=available_ram_mb(),
            gpu_mb=free_gpu_mb() if ask_gpu else None,
            is_limited=cgroup_headroom_bytes() is not None,
        )


def validate_ram_for_cache(
    parsed: Parsed, sources: Sources, device: str, memory: Memory
) -> list[Check]:
    """Where `load-latents` is going to put the latents, by the rule that it follows itself."""
    config, checks = parsed.config, Checks("memory")
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
        text += "".join(f"; {reason}" for reason in tier.stepped_down)
        text += with_defaults(parsed, LATENT_KEYS)
        add = checks.warn if tier.stepped_down else checks.ok
        add("latents", text, tier=tier.name, num_bytes=round(needed_mb * 1e6))
    return checks


def validate_training_memory(
    parsed: Parsed, sources: Sources, device: str, memory: Memory
) -> list[Check]:
    """Weights, gradients, moments, average and activations of a batch, beside the latents."""
    config, checks = parsed.config, Checks("memory")
    if any("operator." in rule for rule in parsed.disagreements):
        checks.skip("training", "no operator can be built of fields that do not agree")
        return checks
    from ups.validate.footprint import footprint

    encoded = [known for split in ENCODED_SPLITS for known in sources.get(split, ())]
    num_frames = encoded[0].num_frames if encoded else NUM_FRAMES
    needed = footprint(config, num_frames, device)
    on_gpu = device == "cuda" and memory.gpu_mb is not None
    free_mb = memory.gpu_mb if on_gpu and memory.gpu_mb is not None else memory.ram_mb
    place = "GPU" if on_gpu else "RAM"
    text = (
        f"{needed.num_parameters:,} parameters, {format_size(needed.state_bytes)} with gradients, "
        f"moments and average; at least {format_size(needed.activation_bytes)} of activations"
    )
    latents_mb, beside = 0.0, ""
    num_bytes = latent_bytes(config, sources)
    if num_bytes is not None and config.features.preload not in ("off", "disk"):
        tier = choose_tier(config, num_bytes, device, gpu_mb=memory.gpu_mb, ram_mb=memory.ram_mb)
        if tier.name == ("gpu" if on_gpu else "ram"):
            latents_mb = resident_mb(config, num_bytes)
            beside = f" beside {_mb(latents_mb)} of latents"
    note = with_defaults(parsed, (*MODEL_KEYS, *LATENT_KEYS))
    if device == "cpu" and config.training.device == "cuda":
        note += " (for the CPU, as there is no GPU)"
    figures = {"num_bytes": needed.num_bytes, "num_parameters": needed.num_parameters}
    if check_sufficient_ram(needed.num_bytes / 1e6 + latents_mb, margin=0, available_mb=free_mb):
        checks.ok("training", f"{text}{beside}{note}", **figures)
    else:
        checks.fault(
            "training",
            f"{text}{beside}: more than the {_mb(free_mb)} of {place} that are free; lower "
            f"training.batch_size or operator.hidden_dim{note}",
            **figures,
        )
    return checks


def _mb(megabytes: float) -> str:
    return format_size(round(megabytes * 1e6))
