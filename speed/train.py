"""Training on latents in GPU memory: one epoch and one step, each way to run them, and legacy mode.

Also what NVML sees meanwhile, how near the step is to the roofline, whether a graph's losses are
eager's, and what the dtype of the stored latents does to the score.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from speed import inputs, roofline
from speed.harness import Comparison, Result, Run, Sample, alternate, ours_first
from speed.measure import SAMPLE_EVERY_S, gpu_watched, mean_utilisation, timed
from speed.settings import Settings
from ups.config import Features, ProblemConfig
from ups.latents import legacy
from ups.latents.build import ensure
from ups.latents.datasets import LatentDataset, PreloadedCacheDataset
from ups.latents.loader import load
from ups.models.conditioning import conditioning
from ups.pipeline.phases import SourcesBySplit
from ups.training.evaluate import evaluate
from ups.training.loop import train
from ups.training.step import TrainStep, epoch_order

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
    "the start-up section). legacy: `.pt` files from disk through a DataLoader, eager."
]


def run(settings: Settings) -> Iterator[Comparison]:
    num = min(settings.scaled(NUM), settings.scaled(inputs.NUM_SOLVED) - 2)
    staged = inputs.solved_sources(settings, num)
    base = inputs.gpu_config(settings, CACHE)
    entry = ensure(base, staged, device=settings.device)
    latents = load(base, {inputs.PROBLEM: entry}, {inputs.PROBLEM: staged}, device=settings.device)
    epochs: dict[str, _Epoch] = {}
    for mode in MODES[settings.device]:
        config = inputs.gpu_config(settings, CACHE, {"training.compile": mode})
        epochs[NAMES[mode]] = _Epoch(TrainStep(config), latents.train)
    yield _epochs(settings, staged, epochs, num)
    yield _steps(settings, epochs)
    yield _watched(settings, epochs)
    yield _curves(settings, latents.train)
    latents.close()
    yield _dtypes(settings, min(settings.scaled(NUM_SCORED), num))


class _Epoch:
    """One epoch after the other with one step, over one data set."""

    def __init__(self, step: TrainStep, data: LatentDataset) -> None:
        self.step, self.data = step, data
        self.num_steps = -(-len(data) // step.items_per_step)
        self._epoch = 0
        step.begin(data, MANY_STEPS)

    def __call__(self) -> float:
        """Seconds of an epoch; without a single synchronisation before its end."""
        seconds = timed(self._run, self.step.device)
        self._epoch += 1
        return seconds

    def _run(self) -> None:
        with self.step.on_stream():
            self.step.begin_epoch(epoch_order(self.data, self.step.config, self._epoch))
            for _ in range(self.num_steps):
                self.step()


def _epochs(
    settings: Settings, staged: SourcesBySplit, epochs: dict[str, _Epoch], num: int
) -> Comparison:
    runs: dict[str, Run] = dict(epochs)
    features = {"features": Features.legacy().model_dump(), "training.compile": "off"}
    old = inputs.gpu_config(settings, CACHE, features)
    legacy.precompute(old, staged)
    step = TrainStep(old)
    for workers in (0, 4) if settings.device == "cuda" else (0,):
        name = "legacy" if not workers else f"legacy, {workers} workers"
        runs[name] = _legacy_epoch(old, step, workers)
    return Comparison(
        phase=f"training epoch, {num} trajectories, {old.name}, {settings.device}",
        results=alternate(ours_first(runs), settings.repeats),
        targets={"legacy": 10},
        notes=NOTES,
    )


def _legacy_epoch(config: ProblemConfig, step: TrainStep, workers: int) -> Callable[[], float]:
    """Legacy mode: files from disk through a DataLoader, eager."""
    loader = DataLoader(
        _PtFiles(config),
        config.training.batch_size,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=config.training.pin_memory and step.device == "cuda",
    )

    def epoch() -> None:
        for number, z_BTKD in enumerate(loader):
            z_BTKD = z_BTKD.to(step.device, non_blocking=True)
            nu_B = torch.full((len(z_BTKD),), inputs.NU, device=step.device)
            step_dt = 0.01 * config.training.time_stride
            condition_BC = conditioning([inputs.PROBLEM], inputs.PROBLEM, nu_B, step_dt)
            batch = PreloadedCacheDataset(z_BTKD, condition_BC, step.device)
            step.begin(batch, MANY_STEPS, number)
            step()

    return partial(timed, epoch, step.device)


class _PtFiles(Dataset[Tensor]):
    """Legacy mode's files, each read when it is asked for."""

    def __init__(self, config: ProblemConfig) -> None:
        self._paths = sorted(legacy.split_dir(config, "train").glob("sample_*.pt"))
        self._stride = config.training.time_stride

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Tensor:
        sample: dict[str, Any] = torch.load(self._paths[index], weights_only=True)
        latent: Tensor = sample["latent"][:: self._stride]
        return latent


def _steps(settings: Settings, epochs: dict[str, _Epoch]) -> Comparison:
    """The mean step of an epoch beside what the device's ceilings allow."""
    step, data = epochs["eager"].step, epochs["eager"].data
    every_N = torch.arange(len(data), device=data.index_device)

    def first_step() -> None:
        step.begin_epoch(every_N)
        step()

    work = roofline.count(first_step)
    dtype = torch.bfloat16 if step.bf16 else torch.float32
    ceiling = roofline.ceilings(settings.device, dtype)
    bound_s, bounded_by = ceiling.bound_s(work)
    name = f"roofline ({bounded_by})"

    def of_step(epoch: _Epoch) -> Sample:
        step_s = epoch() / epoch.num_steps
        extras = {
            "TFLOP/s": work.flops / step_s / 1e12,
            "eager bytes, GB/s": work.num_bytes / step_s / 1e9,
        }
        return Sample(1e3 * step_s, extras)

    runs = {name: partial(of_step, epoch) for name, epoch in epochs.items()}
    results = alternate(ours_first(runs), settings.repeats)
    compute = Result("matrix products alone", "bound", [1e3 * work.flops / ceiling.flops_s])
    memory = Result("eager's bytes alone", "bound", [1e3 * work.num_bytes / ceiling.bytes_s])
    return Comparison(
        phase=f"optimizer step, {work.flops / 1e9:.3g} GFLOP, {work.num_bytes / 1e9:.3g} GB",
        unit="ms",
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

    def watch(epoch: _Epoch) -> float:
        over_at = time.monotonic() + WATCH_S[settings.device]
        with gpu_watched(settings.device) as watch:
            while time.monotonic() < over_at:
                epoch()
        use = mean_utilisation(watch)
        if use is None:
            raise RuntimeError((watch and watch.note) or "no GPU to watch")
        return use

    runs = {name: partial(watch, epoch) for name, epoch in epochs.items()}
    return Comparison(
        phase="GPU utilisation while training, NVML",
        unit="%",
        better="higher",
        results=[*alternate(ours_first(runs), 1, 0), Result("asked for", "bound", [97.0])],
        targets={"asked for": 1},
        notes=[
            f"Utilisation: one stretch of {WATCH_S['cuda']:.0f} s, a sample every "
            f"{SAMPLE_EVERY_S} s."
        ],
    )


def _curves(settings: Settings, data: LatentDataset) -> Comparison:
    """Losses of the same 50 steps, eager and as a graph."""
    other = MODES[settings.device][0]
    curves = {mode: _losses(settings, data, mode) for mode in ("off", other)}
    pairs = zip(curves["off"], curves[other], strict=True)
    apart = max(abs(a - b) / max(abs(a), 1e-12) for a, b in pairs)
    note = f"Loss curves: {CURVE_STEPS} steps from one seed, eager and {NAMES[other]}; "
    note += f"last losses {curves['off'][-1]:.5g} and {curves[other][-1]:.5g}."
    if other == "off":
        note += " There is no graph without CUDA: eager twice."
    return Comparison(
        phase=f"losses of {CURVE_STEPS} steps, {NAMES[other]} against eager",
        unit="relative difference, largest",
        results=[Result(NAMES[other], "ours", [apart]), Result("bf16 tolerance", "bound", [2**-7])],
        notes=[note],
    )


def _losses(settings: Settings, data: LatentDataset, mode: str) -> list[float]:
    config = inputs.gpu_config(settings, CACHE, {"training.compile": mode})
    step, losses = TrainStep(config), list[float]()
    with step.on_stream():
        step.begin(data, CURVE_STEPS)
        while len(losses) < CURVE_STEPS:
            step.begin_epoch(epoch_order(data, config, len(losses)))
            for _ in range(-(-len(data) // step.items_per_step)):
                step()
                losses.append(step.loss_sum.item())
                step.loss_sum.zero_()
    return losses[:CURVE_STEPS]


def _dtypes(settings: Settings, num: int) -> Comparison:
    """The test score after the same training on latents that are stored in each dtype."""
    staged = inputs.solved_sources(settings, num)
    seeds = {dtype: itertools.count() for dtype in ("float16", "bfloat16", "float32")}

    def score(dtype: str) -> float:
        changes = {
            "training.latent_cache_dtype": dtype,
            "training.compile": MODES[settings.device][0],
            "training.seed": next(seeds[dtype]),
            "stages.operator.epochs": SCORE_EPOCHS[settings.device],
            "evaluation.num_examples": 1,  # nobody looks at the picture
        }
        config = inputs.gpu_config(settings, CACHE, changes)
        entry = {inputs.PROBLEM: ensure(config, staged, device=settings.device)}
        latents = load(config, entry, {inputs.PROBLEM: staged}, device=settings.device)
        run_dir = inputs.empty(settings.folder / f"runs-{dtype}")
        checkpoint = train(config, latents, run_dir).checkpoint
        test = {inputs.PROBLEM: staged["test"]}
        scores = evaluate(config, checkpoint, test, latents.encoders, run_dir)
        latents.close()
        return scores.rollout["nRMSE"]

    runs = {dtype: partial(score, dtype) for dtype in seeds}
    return Comparison(
        phase="test rollout nRMSE by the dtype of the stored latents",
        unit="nRMSE",
        results=alternate(ours_first(runs), min(SEEDS, settings.repeats), warm_ups=0),
        notes=[
            f"Stored dtype: {SCORE_EPOCHS['cuda']} epochs from {SEEDS} seeds, the same for each."
        ],
    )
