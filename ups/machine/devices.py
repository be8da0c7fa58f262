"""Which device a config means on this machine, and how many threads torch takes on it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from ups.config import RunConfig
from ups.errors import DeviceError
from ups.machine.cgroup import num_cores

log = logging.getLogger(__name__)

LEAST_FOR_THREADS = 1e9


def training_device(config: RunConfig) -> str:
    """`cuda` or `cpu`.

    Raises:
        DeviceError: the config asks for CUDA, and there is none.
    """
    import torch

    wanted = config.training.device
    if wanted == "cpu":
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    if wanted == "cuda":
        raise DeviceError(
            "training.device: found cuda, but torch sees no CUDA device "
            f"(torch {torch.__version__}); expected a GPU and its driver, or set it to auto or cpu"
        )
    return "cpu"


def limit_torch_threads() -> None:
    """Have torch take no more threads on the CPU than there are cores for this process."""
    import torch

    torch.set_num_threads(min(torch.get_num_threads(), num_cores()))


@contextlib.contextmanager
def threads_that_pay(multiplications: float) -> Iterator[None]:
    """Have torch's threads on the CPU be as many as steps of this size gain from, for a while.

    Measured on two cores: of 5e7 a step takes 7 ms with one thread or two; and where another
    process wants a core, 9 ms with one, and 600 with two, which wait for each other. Of 1.5e9 it
    takes a third less with two, where nobody else wants the second core.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(before if multiplications >= LEAST_FOR_THREADS else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def own_stream(device: str) -> Iterator[None]:
    """Have what this thread gives to the GPU inside wait for nothing that others give to it.

    On the default stream a copy would wait for all steps that training has queued there.
    """
    import torch

    if device == "cpu":
        yield
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.default_stream())  # memory may have been freed there just now
    with torch.cuda.stream(stream):
        yield


def encoding_device(config: RunConfig) -> str:
    """Where latents are encoded: the training device, or the CPU with `gpu_encode` off."""
    return training_device(config) if config.features.gpu_encode else "cpu"


def check_compile(config: RunConfig) -> None:
    """Refuse to compile for a device that is not the one of the training.

    Raises:
        DeviceError: a CUDA graph is asked for without CUDA.
    """
    if config.training.compile == "graph" and training_device(config) != "cuda":
        raise DeviceError(
            "training.compile: found graph, which captures a CUDA graph, but the training device "
            "is cpu; expected off or inductor here"
        )


def has_gpu_node() -> bool:
    """Whether the system shows this process a GPU: NVIDIA's, ROCm's or WSL's device file."""
    nodes = ("nvidia[0-9]*", "kfd", "dxg")
    return any(True for pattern in nodes for _ in Path("/dev").glob(pattern))
