"""A kind of operator trained for so many seconds on trajectories of one ν, and its error on others.

All kinds share the trajectories, the pairs that a step draws of them and the loss: those of the
config `smoke`. Theirs alone are the model, the encoder, the rate and the pairs of a step.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from speed import inputs
from speed.settings import Settings
from ups.config import ProblemConfig, Split, load_config
from ups.data.generate import generate
from ups.data.sources import Staged, open_file
from ups.latents.build import ensure
from ups.latents.datasets import LatentDataset
from ups.latents.encode import PatchEncoder
from ups.latents.loader import load
from ups.models.conditioning import conditioning
from ups.training.metrics import nrmse_over_time
from ups.training.step import TrainStep, epoch_order, num_starts, rollout

NUS = (0.01, 0.001)
CONFIGS = {"latent CNN": "smoke", "FNO": "smoke_fno", "U-Net": "smoke_unet"}  # the first is ours
X_STRIDE, T_STRIDE = 4, 10  # of the grid's points all are scored on; of the frames a step spans
NUM: dict[str, dict[Split, int]] = {
    "cpu": {"train": 256, "val": 32, "test": 128},
    "cuda": {"train": 4096, "val": 128, "test": 1024},
}
PAIRS_FACTOR = {"cpu": 1, "cuda": 16}  # a GPU takes a step of more pairs in the same time
WARM_UP_STEPS, TIMED_STEPS = 10, 40
PARTS = 10


@dataclass(frozen=True)
class Choice:
    """What a kind has for itself.

    Attributes:
        pairs: of a step, on a CPU.
        size: overrides of the config.
    """

    lr: float
    pairs: int
    size: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        size = "".join(f", {key.split('.')[-1]} {value}" for key, value in self.size.items())
        return f"lr {self.lr:g}, {self.pairs} pairs{size}"


@dataclass(frozen=True, slots=True)
class Job:
    """One training.

    Attributes:
        budget_s: CPU seconds of the steps, on a GPU seconds.
        split: what is scored.
    """

    name: str
    nu: float
    choice: Choice
    budget_s: float
    seed: int = 0
    split: Split = "test"


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training came to.

    Attributes:
        error: nRMSE of rollouts from the first frame, mean over trajectories and later frames.
        seconds: that the steps really took, of the clock of the budget.
    """

    error: float
    seconds: float
    num_steps: int


def train_and_score(settings: Settings, job: Job) -> Trained:
    """Train for the budget, and score the average of the weights.

    The number of steps is first set from the time of some steps of an operator that is thrown away.
    """
    torch.set_num_threads(1)
    config = config_of(settings, job.name, job.nu, job.choice, job.seed)
    staged = {inputs.PROBLEM: staged_of(settings, job.nu)}
    entry = ensure(config, staged[inputs.PROBLEM], device=settings.device)
    latents = load(config, {inputs.PROBLEM: entry}, staged, device=settings.device)
    data, warm_up = latents.train, settings.scaled(WARM_UP_STEPS)
    trial, timed = TrainStep(config), settings.scaled(TIMED_STEPS)
    num_steps = warm_up + timed
    take_steps(trial, data, num_steps, range(warm_up))
    step_s = take_steps(trial, data, num_steps, range(warm_up, num_steps)) / timed
    step = TrainStep(config)
    seconds, num_steps = train_for(step, data, job.budget_s, step_s)
    encoder = latents.encoders[inputs.PROBLEM].to(step.device)
    latents.close()
    error = score(settings, config, step.ema, encoder, job.nu, job.split)
    return Trained(error, seconds, num_steps)


def train_for(
    step: TrainStep, data: LatentDataset, budget_s: float, step_s: float
) -> tuple[float, int]:
    """Train so that the schedule ends with the budget; the seconds really spent, and the steps.

    A tenth of the steps at a time, after which their number is set anew from the time that they
    took: on a busy machine that changes by a third.

    Args:
        step_s: what a step will take, about.
    """
    taken, seconds, total = 0, 0.0, max(1, round(budget_s / step_s))
    for part in range(1, PARTS + 1):
        end = max(taken, total * part // PARTS)
        seconds += take_steps(step, data, total, range(taken, end))
        taken = end
        if taken and part < PARTS:
            total = max(taken + 1, round(taken * budget_s / seconds))
    return seconds, taken


def take_steps(step: TrainStep, data: LatentDataset, total: int, steps: range) -> float:
    """Seconds of these steps, of `total`; of the processor, of a GPU those that pass."""
    clock = time.perf_counter if step.device == "cuda" else time.process_time
    per_epoch = -(-len(data) * (num_starts(data, step.config) or 1) // step.items_per_step)
    step.synchronize()
    started = clock()
    with step.on_stream():
        step.begin(data, total, steps.start)
        for number in steps:
            epoch, batch = divmod(number, per_epoch)
            if batch == 0 or number == steps.start:
                step.begin_epoch(epoch_order(data, step.config, epoch), batch)
            step()
    step.synchronize()
    return clock() - started


def score(
    settings: Settings,
    config: ProblemConfig,
    model: nn.Module,
    encoder: PatchEncoder,
    nu: float,
    split: Split,
) -> float:
    """Mean nRMSE over the trajectories and the frames after the first, on every fourth point."""
    u_NTX, condition_NC = fields(settings, config, nu, split)
    given_NTX = u_NTX[..., :: config.encoder.x_stride]
    predicted = predict(model, encoder, given_NTX[:, :1], condition_NC, u_NTX.shape[1] - 1)
    scored = predicted[..., :: X_STRIDE // config.encoder.x_stride]
    return mean_error(scored, u_NTX[..., ::X_STRIDE])


def mean_error(predicted_NTX: Tensor, u_NTX: Tensor) -> float:
    """Over trajectories and frames; of the truth the first frame, which was given, is left out."""
    return nrmse_over_time(predicted_NTX, u_NTX[:, 1:]).mean().item()


@torch.no_grad()
def predict(
    model: nn.Module, encoder: PatchEncoder, u0_N1X: Tensor, condition_NC: Tensor, num_steps: int
) -> Tensor:
    """(N, 1, X) → (N, num_steps, X), from field to fields."""
    return encoder.decode(rollout(model, encoder.encode(u0_N1X), condition_NC, num_steps))


def fields(
    settings: Settings, config: ProblemConfig, nu: float, split: Split
) -> tuple[Tensor, Tensor]:
    """A split as it was solved, (N, T, X), and the conditioning of its trajectories."""
    (source,) = staged_of(settings, nu)[split]
    whole = config.model_copy(update={"encoder": config.encoder.model_copy(update={"x_stride": 1})})
    with open_file(whole, source.path, None) as reader:
        u_NTX = torch.from_numpy(reader.read(0, reader.num_trajectories)).to(settings.device)
        nu_N = torch.full((len(u_NTX),), reader.parameter, device=settings.device)
        equations = config.data.equations
        return u_NTX, conditioning(equations, reader.equation.name, nu_N, reader.dt)


def config_of(
    settings: Settings, name: str, nu: float, choice: Choice, seed: int = 0
) -> ProblemConfig:
    """The config of a kind, for the trajectories of `solve`."""
    given: dict[str, Any] = {
        "data.grid_points": settings.grid_points,
        "data.generate.nu": nu,
        "encoder.fit_trajectories": NUM["cpu"]["train"],  # of each three frames
        "training.latent_cache_dir": str(settings.folder / "operators" / "cache"),
        "training.device": settings.device,
        "training.compile": "graph" if settings.device == "cuda" else "off",
        "training.time_stride": 1,
        "training.pairs_per_step": choice.pairs * PAIRS_FACTOR[settings.device],
        "training.seed": seed,
        "stages.operator.optimizer.lr": choice.lr,
    }
    if name in ("FNO", "U-Net"):
        given |= {"latent.tokens": settings.grid_points // X_STRIDE}
    return load_config(CONFIGS[name], {**given, **choice.size}).only_problem()


def solve(settings: Settings, nu: float, split: Split) -> None:
    """Have the trajectories of a split on disk, of their frames only those that are looked at."""
    torch.set_num_threads(1)
    path = path_of(settings, nu, split)
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    generate(
        path,
        _num(settings, split),
        inputs.PROBLEM,
        nu,
        seed=list(NUM["cpu"]).index(split),
        grid_points=settings.grid_points,
        num_frames=_num_frames(settings),
        device=settings.device,
    )
    inputs.stamp_of(path)


def staged_of(settings: Settings, nu: float) -> dict[Split, list[Staged]]:
    """The splits of `solve`."""
    found: dict[Split, list[Staged]] = {}
    for split in NUM["cpu"]:
        path = path_of(settings, nu, split)
        stamp = inputs.stamp_of(path)
        staged = partial(Staged, split=split, uri=str(path), path=path, rows=None)
        sizes = {"num_bytes": stamp.num_bytes, "fetched_bytes": 0, "seconds": 0}
        found[split] = [staged(sha256=stamp.sha256, **sizes)]
    return found


def path_of(settings: Settings, nu: float, split: Split) -> Path:
    """The file of a split."""
    num, frames, points = _num(settings, split), _num_frames(settings), settings.grid_points
    return settings.folder / "operators" / f"nu{nu}-{split}-{num}x{frames}x{points}.h5"


def _num(settings: Settings, split: Split) -> int:
    return settings.scaled(NUM[settings.device][split])


def _num_frames(settings: Settings) -> int:
    return (settings.num_frames - 1) // T_STRIDE + 1
