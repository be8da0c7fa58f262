"""The utilisation of the GPU that torch uses, while something runs."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from ups.telemetry.gpu import MAX_HZ, GpuWatch, summary

EVERY_S = 1 / MAX_HZ


class Utilisation:
    def __init__(self, device: str) -> None:
        self._watch = GpuWatch(MAX_HZ, uuid=_uuid()) if device == "cuda" else None

    @property
    def mean(self) -> float | None:
        """Percent, of the samples but the first, whose window reaches back before the start."""
        samples = self._watch.samples[1:] if self._watch else []
        use = summary(samples, samples[0].at, samples[-1].at) if samples else None
        return use.mean_pct if use else None

    @property
    def fault(self) -> str | None:
        """Why there are no samples although there is a GPU."""
        return self._watch.note or None if self._watch else None

    def __enter__(self) -> Self:
        if self._watch:
            self._watch.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._watch:
            self._watch.__exit__(kind, error, trace)


def _uuid() -> str:
    import torch

    uuid = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
    return uuid if uuid.startswith("GPU-") else f"GPU-{uuid}"
