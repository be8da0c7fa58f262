"""Training on latents in GPU memory: one epoch and one step, each way to run them, and legacy mode.

Also what NVML sees meanwhile, how near the step is to the roofline, whether a graph's losses are
eager's, and what the dtype of the stored latents does to the score.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks import fixture, gpu_data, roofline
from benchmarks.harness import Comparison, Contender, Result, Sample, alternate
from benchmarks.roofline import synchronize
from benchmarks.settings import Settings
from benchmarks.utilisation import EVERY_S, Utilisation
from ups.config import Features, RunConfig
from ups.latents import legacy
from ups.latents.build import ensure
from ups.latents.datasets import LatentDataset
from ups.latents.loader import load
from ups.models.conditioning import conditioning
from ups.pipeline import SourcesBySplit
from ups.training.evaluate import evaluate
from ups.training.loop import epoch_order, train
from ups.training.step import TrainStep

CACHE = "cache-gpu-train"
NUM, NUM_SCORED = 1024, 512
MODES = {"cuda": ("graph", "off", "inductor"), "cpu": ("off",)}
NAMES = {"graph": "graph", "off": "eager", "inductor": "inductor"}
WATCH_S = {"cuda": 6.0, "cpu": 0.2}
CURVE_STEPS = 50
MANY_STEPS = 1_000_000  # of a schedule whose end is not reached
SCORE_EPOCHS = {"cuda": 10, "cpu": 1}
SEEDS = 3
NOTES = [
    "Epoch: shuffled, gather, forward, backward, clip, optimizer and moving average, no "
    "validation; latents in the device's memory. The compiling and capturing is not counted (see "
    "the start-up section). legacy: `.pt` files from disk through a DataLoader, eager.",
]


def run(settings: Settings) -> Iterator[Comparison]:
    path = gpu_data.data_set(settings)
    num = min(settings.scaled(NUM), settings.scaled(gpu_data.NUM) - 2)
    staged = _first_rows(gpu_data.sources(settings, path), num)
    base = gpu_data.config(settings, CACHE)
    entry = ensure(base, staged, device=settings.device)
    latents = load(base, {fixture.TASK: entry}, {fixture.TASK: staged}, device=settings.device)
    steps = {
        mode: TrainStep(gpu_data.config(settings, CACHE, {"training.compile": mode}))
        for mode in MODES[settings.device]
    }
    epochs = {NAMES[m]: _Epoch(step, latents.train) for m, step in steps.items()}
    yield _epochs(settings, base, staged, epochs, num)
    yield _steps(settings, epochs)
    yield _watched(settings, epochs)
    latents.close()
    yield _curves(settings, latents.train)
    yield _dtypes(settings, staged)


class _Epoch:
    """One epoch after the other with one step, over one data set."""

    def __init__(self, step: TrainStep, data: LatentDataset) -> None:
        self.step, self.data = step, data
        self.num_steps = -(-len(data) // step.rows_per_step)
        self._epoch = 0
        step.begin(data, MANY_STEPS)

    def __call__(self) -> float:
        """Seconds of an epoch; without a single synchronisation before its end."""
        device = self.step.device
        synchronize(device)
        started = time.perf_counter()
        with self.step.on_stream():
            self.step.begin_epoch(epoch_order(self.data, self.step.config, self._epoch))
            for _ in range(self.num_steps):
                self.step()
        synchronize(device)
        self._epoch += 1
        return time.perf_counter() - started


def _epochs(
    settings: Settings,
    config: RunConfig,
    staged: SourcesBySplit,
    epochs: dict[str, _Epoch],
    num: int,
) -> Comparison:
    contenders = [
        Contender(name, "peer" if i else "ours", epoch)
        for i, (name, epoch) in enumerate(epochs.items())
    ]
    features = {"features": Features.legacy().model_dump(), "training.compile": "off"}
    old = gpu_data.config(settings, CACHE, features)
    legacy.precompute(old, staged)
    step = TrainStep(old)
    for workers in (0, 4) if settings.device == "cuda" else (0,):
        epoch = _legacy_epoch(old, step, workers)
        name = "legacy" if not workers else f"legacy, {workers} workers"
        contenders.append(Contender(name, "peer", epoch))
    return Comparison(
        section="gpu_train",
        phase=f"training epoch, {num} trajectories, {config.name}, {settings.device}",
        unit="s",
        better="lower",
        results=alternate(contenders, settings.repeats),
        targets={"legacy": 10},
        notes=NOTES,
    )


def _legacy_epoch(config: RunConfig, step: TrainStep, workers: int) -> Callable[[], float]:
    """Legacy mode: files from disk through a DataLoader, eager."""
    files = _PtFiles(config)
    training = config.training
    loader = DataLoader(
        files,
        training.batch_size,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=config.training.pin_memory and step.device == "cuda",
    )

    def epoch() -> float:
        synchronize(step.device)
        started = time.perf_counter()
        for number, z_BTKD in enumerate(loader):
            step.begin(
                _Batch(z_BTKD.to(step.device, non_blocking=True), config), MANY_STEPS, number
            )
            step()
        synchronize(step.device)
        return time.perf_counter() - started

    return epoch


class _PtFiles(Dataset[Tensor]):
    def __init__(self, config: RunConfig) -> None:
        self._paths = sorted(legacy.split_dir(config, "train").glob("sample_*.pt"))
        self._stride = config.training.time_stride

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Tensor:
        sample: dict[str, Any] = torch.load(self._paths[index], weights_only=True)
        latent: Tensor = sample["latent"][:: self._stride]
        return latent


class _Batch:
    """A batch that the DataLoader has delivered, as the step wants its data."""

    def __init__(self, z_BTKD: Tensor, config: RunConfig) -> None:
        self.z_BTKD = z_BTKD
        self.index_device = z_BTKD.device.type
        nu_N = torch.full((len(z_BTKD),), gpu_data.NU, device=z_BTKD.device)
        step_dt = 0.01 * config.training.time_stride
        self.condition_NC = conditioning([fixture.TASK], fixture.TASK, nu_N, step_dt)

    def __len__(self) -> int:
        return len(self.z_BTKD)

    def batch(self, index_B: Tensor) -> Tensor:
        return self.z_BTKD[index_B]


def _steps(settings: Settings, epochs: dict[str, _Epoch]) -> Comparison:
    """The mean step of an epoch beside what the device's ceilings allow."""
    eager = next(epoch for name, epoch in epochs.items() if name == "eager")
    step, data = eager.step, eager.data
    every_N = torch.arange(len(data), device=data.index_device)

    def first_step() -> None:
        step.begin_epoch(every_N)
        step()

    work = roofline.count(first_step)
    dtype = torch.bfloat16 if step.bf16 else torch.float32
    ceiling = roofline.ceilings(settings.device, dtype)
    bound_s, bounded_by = ceiling.bound_s(work)
    name = f"roofline ({bounded_by})"

    def of(epoch: _Epoch) -> Callable[[], Sample]:
        def measure() -> Sample:
            seconds = epoch() / epoch.num_steps
            return Sample(
                1e3 * seconds,
                {
                    "TFLOP/s": work.flops / seconds / 1e12,
                    "eager bytes, GB/s": work.num_bytes / seconds / 1e9,
                },
            )

        return measure

    contenders = [
        Contender(name, "peer" if i else "ours", of(epoch))
        for i, (name, epoch) in enumerate(epochs.items())
    ]
    results = alternate(contenders, settings.repeats)
    compute = Result("matrix products alone", "bound", [1e3 * work.flops / ceiling.flops_s])
    memory = Result("eager's bytes alone", "bound", [1e3 * work.num_bytes / ceiling.bytes_s])
    return Comparison(
        section="gpu_train",
        phase=f"optimizer step, {work.flops / 1e9:.3g} GFLOP, {work.num_bytes / 1e9:.3g} GB",
        unit="ms",
        better="lower",
        results=[*results, Result(name, "bound", [1e3 * bound_s]), compute, memory],
        notes=[
            f"Roofline: FLOPs by torch's counter, bytes of every operation of an eager step. "
            f"Ceilings measured here: {ceiling.flops_s / 1e12:.3g} TFLOP/s ({dtype} product), "
            f"{ceiling.bytes_s / 1e9:.4g} GB/s (copy). The step is bound by {bounded_by}; fusing "
            "operations lowers the bytes, so a fused step may pass this bound."
        ],
    )


def _watched(settings: Settings, epochs: dict[str, _Epoch]) -> Comparison:
    """GPU utilisation as NVML sees it, over some seconds of epochs without a pause."""

    def watch(epoch: _Epoch) -> Callable[[], float]:
        def measure() -> float:
            over_at = time.monotonic() + WATCH_S[settings.device]
            with Utilisation(settings.device) as gpu:
                while time.monotonic() < over_at:
                    epoch()
            if gpu.mean is None:
                raise RuntimeError(gpu.fault or "no GPU to watch")
            return gpu.mean

        return measure

    contenders = [
        Contender(name, "peer" if i else "ours", watch(epoch))
        for i, (name, epoch) in enumerate(epochs.items())
    ]
    return Comparison(
        section="gpu_train",
        phase="GPU utilisation while training, NVML",
        unit="%",
        better="higher",
        results=[
            *alternate(contenders, 1, 0),
            Result("asked for", "bound", [97.0]),
        ],
        targets={"asked for": 1},
        notes=[f"Utilisation: one stretch of {WATCH_S['cuda']:.0f} s, a sample every {EVERY_S} s."],
    )


def _curves(settings: Settings, data: LatentDataset) -> Comparison:
    """Losses of the same 50 steps, eager and as a graph."""
    other = MODES[settings.device][0]
    curves = {mode: _losses(settings, data, mode) for mode in ("off", other)}
    apart = [
        abs(a - b) / max(abs(a), 1e-12) for a, b in zip(curves["off"], curves[other], strict=True)
    ]
    note = f"Loss curves: {CURVE_STEPS} steps from one seed, eager and {NAMES[other]}; "
    note += f"last losses {curves['off'][-1]:.5g} and {curves[other][-1]:.5g}."
    if other == "off":
        note += " There is no graph without CUDA: eager twice."
    return Comparison(
        section="gpu_train",
        phase=f"losses of {CURVE_STEPS} steps, {NAMES[other]} against eager",
        unit="relative difference, largest",
        better="lower",
        results=[
            Result(NAMES[other], "ours", [max(apart)]),
            Result("bf16 tolerance", "bound", [2.0**-7]),
        ],
        notes=[note],
    )


def _losses(settings: Settings, data: LatentDataset, mode: str) -> list[float]:
    config = gpu_data.config(settings, CACHE, {"training.compile": mode})
    step, losses = TrainStep(config), []
    with step.on_stream():
        step.begin(data, CURVE_STEPS)
        while len(losses) < CURVE_STEPS:
            step.begin_epoch(epoch_order(data, config, len(losses)))
            for _ in range(-(-len(data) // step.rows_per_step)):
                step()
                losses.append(step.loss_sum.item())
                step.loss_sum.zero_()
    return losses[:CURVE_STEPS]


def _dtypes(settings: Settings, staged: SourcesBySplit) -> Comparison:
    """The test score after the same training on latents that are stored in each dtype."""
    train_rows = staged["train"][0].rows
    assert train_rows is not None
    few = _first_rows(staged, min(settings.scaled(NUM_SCORED), train_rows[1] - train_rows[0]))

    def score(dtype: str) -> Callable[[], float]:
        seeds = itertools.count()  # the same for each dtype

        def measure() -> float:
            config = gpu_data.config(
                settings,
                CACHE,
                {
                    "training.latent_cache_dtype": dtype,
                    "training.compile": MODES[settings.device][0],
                    "training.seed": next(seeds),
                    "stages.operator.epochs": SCORE_EPOCHS[settings.device],
                },
            )
            entry = ensure(config, few, device=settings.device)
            latents = load(
                config, {fixture.TASK: entry}, {fixture.TASK: few}, device=settings.device
            )
            run_dir = fixture.empty(settings.folder / f"runs-{dtype}")
            result = train(config, latents, run_dir)
            test = {fixture.TASK: few["test"]}
            scores = evaluate(config, result.checkpoint, test, latents.encoders, run_dir)
            latents.close()
            return scores.rollout["nRMSE"]

        return measure

    dtypes = ("float16", "bfloat16", "float32")
    return Comparison(
        section="gpu_train",
        phase="test rollout nRMSE by the dtype of the stored latents",
        unit="nRMSE",
        better="lower",
        results=alternate(
            [
                Contender(dtype, "peer" if i else "ours", score(dtype))
                for i, dtype in enumerate(dtypes)
            ],
            min(SEEDS, settings.repeats),
            warm_ups=0,
        ),
        notes=[
            f"Stored dtype: {SCORE_EPOCHS['cuda']} epochs from {SEEDS} seeds, the same for each."
        ],
    )


def _first_rows(staged: SourcesBySplit, num: int) -> dict[str, Any]:
    """The same sources, with the first `num` training trajectories at most."""
    source = staged["train"][0]
    assert source.rows is not None
    rows = (source.rows[0], min(source.rows[0] + num, source.rows[1]))
    return {**staged, "train": [source.model_copy(update={"rows": rows})]}
