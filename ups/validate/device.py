"""The device that training runs on."""

from __future__ import annotations

from ups.config import Parsed, RunConfig
from ups.device import check_compile, has_gpu_node, training_device
from ups.errors import DeviceError
from ups.validate.check import Check, Checks, with_defaults


def validate_device(parsed: Parsed) -> tuple[list[Check], str]:
    """
    Returns: the checks, and the device: `cpu` also where the one asked for is not there.
    """
    config, checks = parsed.config, Checks("device")
    note = with_defaults(parsed, ["training.device"])
    try:
        device = training_device(config)
        checks.ok("device", f"{_describe(config, device)}{note}", device=device)
    except DeviceError as error:
        device = "cpu"
        checks.fault("device", str(error))
        return checks, device
    try:
        check_compile(config)
    except DeviceError as error:
        checks.fault("compile", str(error))
    return checks, device


def validate_device_early(config: RunConfig) -> list[Check]:
    """The same for the head of a run, where torch may not be imported yet, which takes a second.

    What `warm-up-device` finds out at once, beside the downloads, is left to it; torch is imported
    only where it looks as if it is going to refuse.
    """
    checks = Checks("device")
    training = config.training
    if training.device != "cuda" and training.compile != "graph":
        checks.ok("device", training.device)
    elif has_gpu_node() and config.features.warm_up:
        checks.skip("device", "there is a GPU; warm-up-device finds out whether torch can use it")
    else:
        checks += validate_device(Parsed("config", config))[0]
    return checks


def _describe(config: RunConfig, device: str) -> str:
    import torch

    if device == "cuda":
        return f"cuda, {torch.cuda.get_device_name()}"
    wanted = config.training.device
    return "cpu" if wanted == "cpu" else f"cpu (torch {torch.__version__} sees no CUDA device)"
