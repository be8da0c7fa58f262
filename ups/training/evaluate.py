"""Score a checkpoint on the test split, in physical units, beside persistence."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ups.config import Model, RunConfig
from ups.data.pdebench import TrajectoryFile
from ups.data.sources import Staged
from ups.device import training_device
from ups.latents.encode import PatchEncoder
from ups.models.operator import LatentOperator, conditioning
from ups.telemetry.metrics_file import add_to_summary
from ups.training import checkpoint
from ups.training.metrics import Metrics, nrmse_over_time
from ups.training.step import rollout

log = logging.getLogger(__name__)


class Scores(Model):
    """Errors over the test trajectories; the start frame, which is given, is not counted.

    Persistence says that u stays as it is: one step ahead, the frame before; in the rollout, the
    first frame. Reconstruction is the encoder's own error, the floor of what the operator can do.
    """

    num_trajectories: int
    step_dt: float
    one_step: dict[str, float]
    rollout: dict[str, float]
    persistence_one_step: dict[str, float]
    persistence_rollout: dict[str, float]
    reconstruction_nrmse: float
    picture: Path

    def metrics(self) -> dict[str, float]:
        """By names like val's: `test/nrmse_rollout`, `test/rmse_one_step`, …"""
        kinds = ("rollout", "one_step", "persistence_rollout", "persistence_one_step")
        found = {
            f"test/{name.lower()}_{kind}": value
            for kind in kinds
            for name, value in getattr(self, kind).items()
        }
        return {**found, "test/nrmse_reconstruction": self.reconstruction_nrmse}


@torch.no_grad()
def evaluate(
    config: RunConfig,
    checkpoint_path: Path,
    test: Sequence[Staged],
    encoder: PatchEncoder,
    run_dir: Path,
) -> Scores:
    """Roll the averaged model of a checkpoint out over the whole test split.

    Writes `scores.json` and `prediction.png` into run_dir, and the scores into `metrics.jsonl`.
    """
    device = training_device(config)
    record = checkpoint.load(checkpoint_path, device)
    model = LatentOperator(config).to(device)
    model.load_state_dict(record["ema"])
    model.eval()
    encoder = encoder.to(device)
    stride = config.training.time_stride
    totals: dict[str, Metrics] = defaultdict(Metrics)
    errors: list[Tensor] = []
    examples: list[tuple[Tensor, Tensor]] = []
    count, step_dt = 0, 0.0
    for source in test:
        with TrajectoryFile(
            source.path, source.rows, grid_points=config.data.grid_points
        ) as reader:
            step_dt = reader.dt * stride
            for first in range(0, reader.num_trajectories, config.evaluation.batch_size):
                end = min(first + config.evaluation.batch_size, reader.num_trajectories)
                frames = reader.read(first, end)
                reader.check_finite(frames, first)
                u_BTX = torch.from_numpy(frames[:, ::stride]).to(device)
                nu_B = torch.full((len(u_BTX),), reader.nu, device=device)
                predicted = _predict(model, encoder, u_BTX, nu_B, step_dt)
                for name, (pred, target) in predicted.items():
                    totals[name].update(pred, target)
                pred, target = predicted["rollout"]
                errors.append(nrmse_over_time(pred, target).cpu())
                if len(examples) < config.evaluation.num_examples:
                    for b in range(min(len(u_BTX), config.evaluation.num_examples)):
                        examples.append((target[b].cpu(), pred[b].cpu()))
                count += len(u_BTX)
    means = {name: metrics.result() for name, metrics in totals.items()}
    picture = run_dir / "prediction.png"
    from ups.training.pictures import draw_prediction

    draw_prediction(
        picture, examples[: config.evaluation.num_examples], torch.cat(errors).numpy(), step_dt
    )
    scores = Scores(
        num_trajectories=count,
        step_dt=step_dt,
        one_step=means["one_step"],
        rollout=means["rollout"],
        persistence_one_step=means["persistence_one_step"],
        persistence_rollout=means["persistence_rollout"],
        reconstruction_nrmse=means["reconstruction"]["nRMSE"],
        picture=picture,
    )
    (run_dir / "scores.json").write_text(json.dumps(scores.model_dump(mode="json"), indent=1))
    add_to_summary(run_dir, scores.metrics())
    log.info(
        "test, %d trajectories: rollout nRMSE %.4f (persistence %.4f), "
        "one step %.5f (persistence %.5f)",
        count,
        scores.rollout["nRMSE"],
        scores.persistence_rollout["nRMSE"],
        scores.one_step["nRMSE"],
        scores.persistence_one_step["nRMSE"],
    )
    return scores


def _predict(
    model: LatentOperator, encoder: PatchEncoder, u_BTX: Tensor, nu_B: Tensor, step_dt: float
) -> dict[str, tuple[Tensor, Tensor]]:
    """(prediction, target) pairs, each (B, T - 1, X), frames 1 … T - 1."""
    z_BTKD = encoder.encode(u_BTX)
    condition = conditioning(nu_B, step_dt)
    target = u_BTX[:, 1:]
    rolled = rollout(model, z_BTKD[:, 0], condition, target.shape[1])[:, 1:]
    flat = z_BTKD[:, :-1].flatten(0, 1)
    stepped = model(flat, condition.repeat_interleave(target.shape[1], 0))
    return {
        "rollout": (encoder.decode(rolled), target),
        "one_step": (encoder.decode(stepped).view_as(target), target),
        "persistence_rollout": (u_BTX[:, :1].expand_as(target), target),
        "persistence_one_step": (u_BTX[:, :-1], target),
        "reconstruction": (encoder.decode(z_BTKD[:, 1:]), target),
    }
