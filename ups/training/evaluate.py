"""Score a checkpoint on the test split, in physical units, beside persistence."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from ups.config import Model, ProblemConfig, RunConfig
from ups.data.sources import Staged, open_file
from ups.errors import TrainingDiverged
from ups.files import write_json
from ups.latents.encode import PatchEncoder
from ups.machine.devices import limit_torch_threads, training_device
from ups.models.build import build_operator
from ups.models.conditioning import conditioning
from ups.progress import Progress
from ups.runs.metrics import add_to_summary
from ups.training import checkpoint
from ups.training.metrics import Metrics, is_zero, note_zeros, nrmse_over_time
from ups.training.step import rollout, windows

log = logging.getLogger(__name__)

Places = list[tuple[Path, int]]  # of each trajectory: its file, and its row there
SCORES = "scores.json"
KINDS = ("rollout", "one_step", "persistence_rollout", "persistence_one_step")
PERCENTILES = {"median": 0.5, "p90": 0.9}
SUMMARY = (
    "rollout nRMSE {rollout:.4f} (persistence {persistence_rollout:.4f}), "
    "one step {one_step:.5f} (persistence {persistence_one_step:.5f})"
)


class Scores(Model):
    """Errors over the test trajectories; the frames that are given are not counted.

    Persistence says that u stays as it is: one step ahead, the frame before; in the rollout, the
    last given frame. Reconstruction is the encoder's own error, the floor of what the operator can
    do.

    Attributes:
        rollout_spread: `median` and `p90` over the trajectories of each one's mean over time.
        rollout_over_time: `time`, and `mean`, `p10`, `median`, `p90` over the trajectories, of the
            rollout's nRMSE at each predicted frame.
        pdebench: the rollout's errors as PDEBench averages them: over all frames, those that are
            given, and right, among them; for each batch, and then over the batches.
        step_dt, picture: None of several problems together.
        problems: name → its own scores, where there are several; the figures here are their means.
    """

    num_trajectories: int
    step_dt: float | None
    one_step: dict[str, float]
    rollout: dict[str, float]
    persistence_one_step: dict[str, float]
    persistence_rollout: dict[str, float]
    reconstruction_nrmse: float
    picture: Path | None
    rollout_spread: dict[str, float] = Field(default_factory=dict)
    rollout_over_time: dict[str, list[float]] = Field(default_factory=dict)
    pdebench: dict[str, float] = Field(default_factory=dict)
    problems: dict[str, Scores] = Field(default_factory=dict, alias="tasks")

    @property
    def pictures(self) -> dict[str, Path]:
        """Title → prediction, one for each problem."""
        if self.picture is not None:
            return {"prediction": self.picture}
        return {
            f"prediction of {name}": s.picture for name, s in self.problems.items() if s.picture
        }

    def metrics(self, prefix: str = "test") -> dict[str, float]:
        """By names like val's: `test/nrmse_rollout`, `test/<problem>/rmse_one_step`, …"""
        found = {
            f"{prefix}/{name.lower()}_{kind}": value
            for kind in KINDS
            for name, value in getattr(self, kind).items()
        }
        found[f"{prefix}/nrmse_reconstruction"] = self.reconstruction_nrmse
        for name, value in self.rollout_spread.items():
            found[f"{prefix}/nrmse_rollout_{name}"] = value
        for name, value in self.pdebench.items():
            found[f"{prefix}/pdebench_{name.lower()}"] = value
        for name, scores in self.problems.items():
            found |= scores.metrics(f"{prefix}/{name}")
        return found

    def save(self, folder: Path) -> None:
        """Write `scores.json`."""
        write_json(folder / SCORES, self.model_dump(mode="json", exclude_defaults=True))

    @classmethod
    def together(cls, problems: dict[str, Scores]) -> Scores:
        """Of the whole run: a single problem's own, or the means over several."""
        each = list(problems.values())
        if len(each) == 1:
            return each[0]
        means = {
            kind: {
                name: sum(getattr(s, kind)[name] for s in each) / len(each)
                for name in getattr(each[0], kind)
            }
            for kind in (*KINDS, "rollout_spread", "pdebench")
        }
        return cls(
            num_trajectories=sum(s.num_trajectories for s in each),
            step_dt=None,
            reconstruction_nrmse=sum(s.reconstruction_nrmse for s in each) / len(each),
            picture=None,
            problems=problems,
            **means,
        )


def evaluate(
    config: RunConfig,
    checkpoint_path: Path,
    test: Mapping[str, Sequence[Staged]],
    encoders: Mapping[str, PatchEncoder],
    run_dir: Path,
) -> Scores:
    """Roll the averaged model of a checkpoint out over the whole test split, problem by problem.

    Writes `scores.json` and a picture of each problem (`prediction.png`; of several,
    `prediction-<problem>.png`) into run_dir, and the scores into `metrics.jsonl`.

    Args:
        test, encoders: problem → the staged files of its test split; the encoder of its latents,
            for a checkpoint that does not hold the one that it was trained with.
    Raises:
        TrainingDiverged: a score is not finite.
        DataError: the test split holds nothing but zeros, or values that are not finite.
    """
    limit_torch_threads()
    device = training_device(config)
    record = checkpoint.load(checkpoint_path, device)
    model = build_operator(config).to(device)
    model.load_state_dict(record["ema"])
    model.eval()
    of_problems, by_problem = {}, config.by_problem()
    for name, own_config in by_problem.items():
        picture = picture_of(run_dir, name, by_problem)
        encoder, equations = encoders[name], config.data.equations
        if of_problem := record.get("trained_on", {}).get(name):
            encoder = PatchEncoder.from_manifest(of_problem["encoder"])
        of_problems[name] = score_problem(
            own_config, equations, model, test[name], encoder.to(device), picture
        )
    scores = Scores.together(of_problems)
    scores.save(run_dir)
    add_to_summary(run_dir, scores.metrics())
    for name, of_problem in of_problems.items():
        what = "test" if len(of_problems) == 1 else f"test of {name}"
        nrmse = {kind: getattr(of_problem, kind)["nRMSE"] for kind in KINDS}
        num, said = of_problem.num_trajectories, SUMMARY.format(**nrmse)
        log.info("%s, %d trajectories: %s", what, num, said)
    return scores


def picture_of(folder: Path, name: str, problems: Collection[str]) -> Path:
    """Where the picture of one of these problems goes."""
    return folder / ("prediction.png" if len(problems) == 1 else f"prediction-{name}.png")


@torch.no_grad()
def score_problem(
    config: ProblemConfig,
    equations: Sequence[str],
    model: Any,
    test: Sequence[Staged],
    encoder: PatchEncoder,
    picture: Path | None,
    progress: Progress = lambda _done, _total: None,
) -> Scores:
    """Scores on the test split of one problem, and its picture.

    Args:
        equations: of the whole run, which the model is told apart by.
        picture: where it goes; none is drawn without, or of no examples.
        progress: takes trajectories done, and in all of the file that is being read.
    """
    stride, given, device = config.training.time_stride, config.given_frames, encoder.device
    picture = picture if config.evaluation.num_examples else None
    totals: dict[str, Metrics] = defaultdict(Metrics)
    errors: list[Tensor] = []
    zeros: list[Tensor] = []
    places: Places = []
    examples: list[tuple[Tensor, Tensor]] = []
    of_batches: list[dict[str, float]] = []
    step_dt = 0.0
    for source in test:
        with open_file(config, source.path, source.rows) as reader:
            step_dt = reader.dt * stride
            for first in range(0, reader.num_trajectories, config.evaluation.batch_size):
                end = min(first + config.evaluation.batch_size, reader.num_trajectories)
                frames = reader.read(first, end)
                reader.check_finite(frames, first)
                u_BTX = torch.from_numpy(frames[:, ::stride]).to(device)
                parameter_B = torch.full((len(u_BTX),), reader.parameter, device=device)
                condition_BC = conditioning(equations, reader.equation.name, parameter_B, step_dt)
                predicted = _predict(config, model, encoder, u_BTX, condition_BC)
                for name, (pred, target) in predicted.items():
                    totals[name].update(pred, target)
                pred, target = predicted["rollout"]
                of_batch = Metrics()
                of_batch.update(torch.cat([u_BTX[:, :given], pred], 1), u_BTX)
                of_batches.append(of_batch.result())
                errors.append(nrmse_over_time(pred, target).cpu())
                zeros.append(is_zero(target).sum(1).cpu())
                wanted = config.evaluation.num_examples - len(examples)
                examples += zip(target[:wanted].cpu(), pred[:wanted].cpu(), strict=True)
                row = first + (source.rows[0] if source.rows else 0)
                places += [(source.path, row + i) for i in range(len(u_BTX))]
                progress(end, reader.num_trajectories)
    where = f"test of {config.problem.name}"
    if note := note_zeros(where, torch.cat(zeros), target.shape[1], lambda i: _place(places[i])):
        log.warning("%s", note)
    means = {name: metrics.result() for name, metrics in totals.items()}
    for name, metrics in totals.items():
        _check_finite(where, name, means[name], metrics.first_not_finite(), places)
    errors_NT = torch.cat(errors)
    if picture is not None:
        from ups.training.pictures import draw_prediction

        draw_prediction(picture, examples, errors_NT.numpy(), step_dt, given)
    return Scores(
        num_trajectories=len(places),
        step_dt=step_dt,
        **{kind: means[kind] for kind in KINDS},
        reconstruction_nrmse=means["reconstruction"]["nRMSE"],
        picture=picture,
        rollout_spread=_spread(errors_NT.nanmean(1)),
        rollout_over_time=_over_time(errors_NT, step_dt, given),
        pdebench={name: _mean([of[name] for of in of_batches]) for name in of_batches[0]},
    )


def _mean(values: Sequence[float]) -> float:
    """Of those that there are: a batch of zeros has no nRMSE."""
    found = [value for value in values if not math.isnan(value)]
    return sum(found) / len(found)


def _spread(errors_N: Tensor) -> dict[str, float]:
    """Of trajectories that have an error."""
    found_N = errors_N[~errors_N.isnan()]
    return {name: found_N.quantile(share).item() for name, share in PERCENTILES.items()}


def _over_time(errors_NT: Tensor, step_dt: float, given: int) -> dict[str, list[float]]:
    """Of the frames in which a trajectory has an error."""
    is_scored_T = ~errors_NT.isnan().all(0)
    found_NT = errors_NT[:, is_scored_T]
    frames = torch.arange(given, given + errors_NT.shape[1])[is_scored_T]
    shares = {"p10": 0.1, **PERCENTILES}
    return {
        "time": (frames * step_dt).tolist(),
        "mean": found_NT.nanmean(0).tolist(),
        **{name: found_NT.nanquantile(share, 0).tolist() for name, share in shares.items()},
    }


def _check_finite(
    where: str, kind: str, scores: Mapping[str, float], bad: int | None, places: Places
) -> None:
    """Refuse scores that are not finite.

    Args:
        bad: which trajectory is the first with an error that is not.
    """
    for name, value in scores.items():
        if not math.isfinite(value):
            first = "" if bad is None else f", from {_place(places[bad])} on"
            raise TrainingDiverged(
                f"{where}: {name} of {kind} is {value}{first}: train for longer or with a lower "
                "stages.operator.optimizer.lr, and see with `ups validate` what is in the data"
            )


def _place(place: tuple[Path, int]) -> str:
    path, row = place
    return f"trajectory {row} of {path}"


def _predict(
    config: RunConfig, model: Any, encoder: PatchEncoder, u_BTX: Tensor, condition_BC: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """(prediction, target) pairs, each (B, T - given, X), of the frames after the given ones."""
    history, given = config.operator.history, config.given_frames
    z_BTKD = encoder.encode(u_BTX)
    target = u_BTX[:, given:]
    num_steps = target.shape[1]
    rolled = rollout(model, z_BTKD[:, given - history : given], condition_BC, num_steps)
    before = windows(z_BTKD[:, given - history : -1], history)
    stepped = model(before, condition_BC.repeat_interleave(num_steps, 0))
    return {
        "rollout": (encoder.decode(rolled), target),
        "one_step": (encoder.decode(stepped).view_as(target), target),
        "persistence_rollout": (u_BTX[:, given - 1 : given].expand_as(target), target),
        "persistence_one_step": (u_BTX[:, given - 1 : -1], target),
        "reconstruction": (encoder.decode(z_BTKD[:, given:]), target),
    }
