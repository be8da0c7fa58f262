"""What GPUs do meanwhile, as NVML sees it: utilisation, memory and power, by a thread."""

from __future__ import annotations

import bisect
import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from ups.config import Model

DEFAULT_HZ, MIN_HZ, MAX_HZ = 5.0, 1.0, 10.0
NVML_LIBRARY = "libnvidia-ml.so.1"
JOIN_S = 2.0  # a driver that hangs must not hold up a run's end
FIRST_EPOCH = "first epoch"


@dataclass(frozen=True, slots=True)
class GpuSample:
    """What NVML said of a GPU at one moment.

    Attributes:
        at: Unix time in seconds.
        utilisation_pct: share of the last 0.2 to 1 s in which a kernel ran; NVML's own window.
        memory_mb: taken on the GPU, by whatever process.
        power_w: None where the GPU does not say.
        gpu: which of those that are watched.
    """

    at: float
    utilisation_pct: float
    memory_mb: float
    power_w: float | None
    gpu: int = 0


class GpuUse(Model):
    """What the samples of one stretch of time come to; of several GPUs, the mean over them.

    Attributes:
        num_samples: of each GPU.
        p10_pct: a tenth of the samples is not above it; of the most idle GPU.
        idle_share: share of the samples at 0 %; of the most idle GPU: the others wait for it.
        max_memory_mb: of the fullest GPU.
        mean_power_w: of a GPU.
        num_gpus: how many were sampled.
    """

    num_samples: int
    mean_pct: float
    p10_pct: float
    idle_share: float
    max_memory_mb: float
    mean_power_w: float | None
    num_gpus: int = 1

    def __str__(self) -> str:
        several = self.num_gpus > 1
        text = (
            f"{f'{self.num_gpus} GPUs ' if several else ''}{self.mean_pct:.0f} % busy "
            f"({'the most idle: ' if several else ''}p10 {self.p10_pct:.0f} %, idle "
            f"{self.idle_share:.0%} of the time), {self.max_memory_mb:,.0f} MB at most"
        )
        if self.mean_power_w is None:
            return text
        return f"{text}, {self.mean_power_w:.0f} W{' each' if several else ''}"


def summary(samples: Sequence[GpuSample], start: float, end: float) -> GpuUse | None:
    """Of the samples, in order of time, in [start, end] (Unix times); None if there are none."""
    first = bisect.bisect_left(samples, start, key=lambda sample: sample.at)
    last = bisect.bisect_right(samples, end, key=lambda sample: sample.at)
    by_gpu: dict[int, list[GpuSample]] = {}
    for sample in samples[first:last]:
        by_gpu.setdefault(sample.gpu, []).append(sample)
    uses = [_use(of_gpu) for of_gpu in by_gpu.values()]
    if not uses:
        return None
    power = [use.mean_power_w for use in uses if use.mean_power_w is not None]
    return GpuUse(
        num_samples=min(use.num_samples for use in uses),
        mean_pct=sum(use.mean_pct for use in uses) / len(uses),
        p10_pct=min(use.p10_pct for use in uses),
        idle_share=max(use.idle_share for use in uses),
        max_memory_mb=max(use.max_memory_mb for use in uses),
        mean_power_w=sum(power) / len(power) if power else None,
        num_gpus=len(uses),
    )


def _use(chosen: Sequence[GpuSample]) -> GpuUse:
    """Of one GPU."""
    busy = sorted(sample.utilisation_pct for sample in chosen)
    power = [sample.power_w for sample in chosen if sample.power_w is not None]
    return GpuUse(
        num_samples=len(chosen),
        mean_pct=sum(busy) / len(busy),
        p10_pct=busy[(len(busy) - 1) // 10],
        idle_share=busy.count(0) / len(busy),
        max_memory_mb=max(sample.memory_mb for sample in chosen),
        mean_power_w=sum(power) / len(power) if power else None,
    )


def by_phase(
    samples: Sequence[GpuSample], stretches: Iterable[tuple[str, float, float]]
) -> dict[str, GpuUse]:
    """The use in each phase, from the start of its first stretch to the end of its last.

    Args:
        stretches: (phase, start, end), Unix times in seconds.
    Returns:
        Without the phases in which no sample fell.
    """
    limits: dict[str, tuple[float, float]] = {}
    for phase, start, end in stretches:
        first, last = limits.get(phase, (start, end))
        limits[phase] = min(first, start), max(last, end)
    found = {phase: summary(samples, *limit) for phase, limit in limits.items()}
    return {phase: use for phase, use in found.items() if use is not None}


def in_words(gpu: Mapping[str, GpuUse] | None, note: str) -> str:
    """One line for a breakdown: the first epoch's use, or why there is none."""
    if gpu and FIRST_EPOCH in gpu:
        return f"{FIRST_EPOCH} {gpu[FIRST_EPOCH]}"
    if gpu:
        return f"{note or 'no sample fell into the first epoch'}; sampled in {', '.join(gpu)}"
    return note


class GpuWatch:
    """Samples GPUs from `with` on to its end; starting it costs the caller no more than a thread.

    They are the first that this process may use: CUDA_VISIBLE_DEVICES, by number in NVML's order
    or by UUID. CUDA counts unequal GPUs in NVML's order only under CUDA_DEVICE_ORDER=PCI_BUS_ID.

    Attributes:
        num_gpus: how many, as far as there are so many; to be set before `with`.
        samples: in order of time; empty without a GPU.
        note: why there are no samples, or no more; empty while all is well.
        cpu_s: CPU seconds that the samples took.
    """

    def __init__(
        self, hz: float = DEFAULT_HZ, *, uuid: str | None = None, nvml: Any = None
    ) -> None:
        """Prepare to sample, from `with` on.

        Args:
            hz: samples per second, 1 to 10.
            uuid: the beginning of a GPU's UUID, such as `GPU-5c2e`, instead of the first GPU.
            nvml: the module `pynvml`; None: imported where the driver's library is.
        """
        if not MIN_HZ <= hz <= MAX_HZ:
            raise ValueError(f"hz: found {hz}, expected {MIN_HZ:.0f} to {MAX_HZ:.0f}")
        self.samples: list[GpuSample] = []
        self.num_gpus = 1
        self.note = ""
        self.cpu_s = 0.0
        self._every_s, self._uuid, self._nvml = 1 / hz, uuid, nvml
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="gpu-watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(JOIN_S)
        if self._thread.is_alive():
            self.note = f"GPU not sampled to the end (NVML did not answer for {JOIN_S:.0f} s)"
        elif not (self.samples or self.note):
            self.note = "GPU not sampled (it was over before the first sample)"

    def _work(self) -> None:
        nvml = self._nvml or import_nvml()
        if nvml is None:
            self.note = "no GPU here (NVML library not found)"
            return
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            self.note = f"no GPU here (NVML: {error})"
            return
        try:
            if handles := self._find(nvml):
                self._sample(nvml, handles)
        except nvml.NVMLError as error:
            num = len({sample.at for sample in self.samples})
            until = f" after {num} samples" if num else ""
            self.note = f"GPU not sampled{until} (NVML: {error})"
        finally:
            with contextlib.suppress(nvml.NVMLError):
                nvml.nvmlShutdown()

    def _find(self, nvml: Any) -> list[Any]:
        """The handles of the GPUs to watch; none, and a note, where there is none."""
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if self._uuid is not None:
            wanted = [self._uuid]
        elif visible is None:
            wanted = [str(i) for i in range(self.num_gpus)]
        else:
            wanted = [name.strip() for name in visible.split(",")[: self.num_gpus]]
        found: list[Any] = []
        for name in wanted:
            if name.isdigit():
                own = handles[int(name) :][:1]
            else:
                own = [h for h in handles if name and nvml.nvmlDeviceGetUUID(h).startswith(name)]
            if not own:  # CUDA stops at the first that is none
                break
            found += own[:1]
        if not found:
            where = "the GPU asked for" if self._uuid else "CUDA_VISIBLE_DEVICES"
            asked = f", {where} is {wanted[0]!r}" if handles else ""
            self.note = f"no GPU here (NVML lists {len(handles)}{asked})"
        return found

    def _sample(self, nvml: Any, handles: Sequence[Any]) -> None:
        started_cpu = time.thread_time()
        while not self._over.wait(self._every_s):
            at = time.time()
            self.samples += [
                GpuSample(
                    at=at,
                    utilisation_pct=float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
                    memory_mb=nvml.nvmlDeviceGetMemoryInfo(handle).used / 1e6,
                    power_w=_power_w(nvml, handle),
                    gpu=gpu,
                )
                for gpu, handle in enumerate(handles)
            ]
            self.cpu_s = time.thread_time() - started_cpu


def import_nvml() -> Any:
    try:
        ctypes.CDLL(NVML_LIBRARY)  # 0.2 ms to know; importing pynvml takes 40
    except OSError:
        return None
    import pynvml

    return pynvml


def _power_w(nvml: Any, handle: Any) -> float | None:
    try:
        return float(nvml.nvmlDeviceGetPowerUsage(handle)) / 1e3
    except nvml.NVMLError:  # some GPUs do not say; the other figures are worth having
        return None
