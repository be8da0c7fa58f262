"""Score a checkpoint on the test split, in physical units, beside persistence."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import Field
from torch import Tensor

from ups.config import Model, ProblemConfig, RunConfig
from ups.data.sources import Staged
from ups.errors import TrainingDiverged
from ups.files import write_json
from ups.latents.encode import PatchEncoder
from ups.machine.devices import limit_torch_threads, threads_that_pay, training_device
from ups.models.build import build_operator
from ups.progress import Progress
from ups.runs.metrics import add_to_summary
from ups.training import checkpoint
from ups.training.metrics import Metrics, note_zeros
from ups.training.scored_batch import Places, ScoredBatch, score_batches

log = logging.getLogger(__name__)

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


@dataclass(slots=True)
class Scorer:
    """A trained model, and problem → the encoder of its latents, on the device."""

    model: Any
    encoders: dict[str, PatchEncoder]

    @classmethod
    def of_checkpoint(
        cls, config: RunConfig, path: Path, encoders: Mapping[str, PatchEncoder]
    ) -> Self:
        """The averaged model of a checkpoint.

        Args:
            encoders: problem → its encoder, for a checkpoint that does not hold the one that it
                was trained with.
        """
        device = training_device(config)
        record = checkpoint.load(path, device)
        model = build_operator(config).to(device)
        model.load_state_dict(record["ema"])
        model.eval()
        of_problems = {}
        for problem in config.data.problems:
            encoder = encoders[problem.name]
            if of_problem := record.get("trained_on", {}).get(problem.name):
                encoder = PatchEncoder.from_manifest(of_problem["encoder"])
            of_problems[problem.name] = encoder.to(device)
        return cls(model, of_problems)


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
    scorer = Scorer.of_checkpoint(config, checkpoint_path, encoders)
    of_problems, by_problem = {}, config.by_problem()
    for name, own_config in by_problem.items():
        picture, encoder = picture_of(run_dir, name, by_problem), scorer.encoders[name]
        of_problems[name] = score_problem(
            own_config, config.data.equations, scorer.model, test[name], encoder, picture
        )
    return leave_scores(of_problems, run_dir)


def leave_scores(of_problems: dict[str, Scores], run_dir: Path) -> Scores:
    """Write the scores of a run's problems into its folder, and say them."""
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
        equations, progress: see `score_batches`.
        picture: where it goes; none is drawn without, or of no examples.
    """
    errors = SplitErrors(config)
    num_weights = sum(weight.numel() for weight in model.parameters())
    of_step = config.evaluation.batch_size * config.latent.tokens * num_weights  # of a rollout
    with threads_that_pay(float(of_step)):
        for _, batch in score_batches(config, equations, model, test, encoder, progress=progress):
            errors.add(batch)
    return errors.scores(picture)


class SplitErrors:
    """What the batches of a problem's test split came to, added up in their order."""

    def __init__(self, config: ProblemConfig) -> None:
        self._config = config
        self._totals: dict[str, Metrics] = defaultdict(Metrics)
        self._of_batches: list[dict[str, float]] = []
        self._errors: list[Tensor] = []
        self._zeros: list[Tensor] = []
        self._examples: list[tuple[Tensor, Tensor]] = []
        self._places: Places = []
        self._step_dt = 0.0

    def add(self, batch: ScoredBatch) -> None:
        """Add the next one."""
        for name, metrics in batch.totals.items():
            self._totals[name].add(metrics)
        self._of_batches.append(batch.pdebench)
        self._errors.append(batch.errors_BT)
        self._zeros.append(batch.zeros_B)
        self._examples += batch.examples
        self._places += batch.places
        self._step_dt = batch.step_dt

    def scores(self, picture: Path | None) -> Scores:
        """The scores of all of them.

        Args:
            picture: where it goes; none is drawn without, or of no examples.
        Raises:
            TrainingDiverged: a score is not finite.
            DataError: all of it is zero.
        """
        config, given, places = self._config, self._config.given_frames, self._places
        picture = picture if config.evaluation.num_examples else None
        where, errors_NT = f"test of {config.problem.name}", torch.cat(self._errors)
        zeros_N = torch.cat(self._zeros)
        if note := note_zeros(where, zeros_N, errors_NT.shape[1], lambda i: _place(places[i])):
            log.warning("%s", note)
        means = {name: metrics.result() for name, metrics in self._totals.items()}
        for name, metrics in self._totals.items():
            _check_finite(where, name, means[name], metrics.first_not_finite(), places)
        if picture is not None:
            from ups.training.pictures import draw_prediction

            draw_prediction(picture, self._examples, errors_NT.numpy(), self._step_dt, given)
        of_batches = self._of_batches
        return Scores(
            num_trajectories=len(places),
            step_dt=self._step_dt,
            **{kind: means[kind] for kind in KINDS},
            reconstruction_nrmse=means["reconstruction"]["nRMSE"],
            picture=picture,
            rollout_spread=_spread(errors_NT.nanmean(1)),
            rollout_over_time=_over_time(errors_NT, self._step_dt, given),
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
