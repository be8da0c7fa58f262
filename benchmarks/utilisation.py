"""GPU utilisation as NVML sees it, sampled by a thread while something runs."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

EVERY_S = 0.05


class Utilisation:
    """
    Attributes:
        percent: the samples; empty without a GPU.
        fault: why there are none although there is one.
    """

    def __init__(self, device: str) -> None:
        self.percent: list[float] = []
        self.fault: str | None = None
        self._device = device
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    @property
    def mean(self) -> float | None:
        """Of the samples but the first, whose window reaches back before the start."""
        inner = self.percent[1:]
        return sum(inner) / len(inner) if inner else None

    def __enter__(self) -> Self:
        if self._device == "cuda":
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _sample(self) -> None:
        import pynvml
        import torch

        try:
            pynvml.nvmlInit()
            uuid = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
            name = uuid if uuid.startswith("GPU-") else f"GPU-{uuid}"
            handle = pynvml.nvmlDeviceGetHandleByUUID(name)
            while not self._over.wait(EVERY_S):
                self.percent.append(float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu))
            pynvml.nvmlShutdown()
        except pynvml.NVMLError as error:
            self.fault = f"NVML: {error}"
