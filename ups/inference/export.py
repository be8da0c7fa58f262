"""Export an operator for those who do not have this project: weights, a card, a program."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from ups.config import Model
from ups.errors import InputError
from ups.files import replacing, write_atomically
from ups.inference.operator import TrainedOperator
from ups.inference.problems import TrainedProblem
from ups.models.conditioning import conditioning
from ups.runs.folder import BEST, CHECKPOINTS
from ups.runs.stored import RunInfo, read_file
from ups.training import checkpoint
from ups.training.evaluate import SCORES

log = logging.getLogger(__name__)

CARD_VERSION = 1
LICENCE = "Apache-2.0"
WEIGHTS, CARD = "weights.safetensors", "card.json"
SECTIONS = ("latent", "encoder", "operator", "training", "stages")
ENCODER = "a frame's X points are K patches of P = X / K; weight is (P, D)"
ENCODE = "z[k] = ((patch[k] - mean) / std) @ weight"
DECODE = "patch[k] = (z[k] @ weight.T) * std + mean"
PROGRAM = (
    "torch.export: one step, (B, H, X) given frames and (B,) parameters, both float32, to the "
    "(B, X) frame after them; feed it back for more"
)


class Exported(Model):
    """What was written.

    Attributes:
        programs: problem → its program; None where the network cannot be exported as one.
    """

    folder: Path
    weights: Path
    card: Path
    programs: dict[str, Path | None]


def export(
    operator: TrainedOperator, path: Path, folder: Path, *, overwrite: bool = False
) -> Exported:
    """Write `weights.safetensors`, `card.json` and a program `step.pt2` of each problem.

    Args:
        operator: on the CPU.
        path: the checkpoint that it was loaded from; beside that of a run, the run's commit is
            found, and the scores of its best one.
    Raises:
        InputError: a file is there already.
    """
    several = len(operator.problems) > 1
    programs = {
        name: folder / (f"step-{name}.pt2" if several else "step.pt2") for name in operator.problems
    }
    for target in (folder / WEIGHTS, folder / CARD, *programs.values()):
        if target.exists() and not overwrite:
            raise InputError(f"{target} is there already: name another folder, or give --force")
    write_atomically(folder / WEIGHTS, save(_tensors(operator)))
    exported = {
        name: target if _write_program(operator, operator.problems[name], target) else None
        for name, target in programs.items()
    }
    card = _card(operator, path, exported)
    write_atomically(folder / CARD, json.dumps(card, indent=1, ensure_ascii=False).encode())
    return Exported(folder=folder, weights=folder / WEIGHTS, card=folder / CARD, programs=exported)


def _tensors(operator: TrainedOperator) -> dict[str, Tensor]:
    tensors = {f"model.{name}": value for name, value in operator.model.state_dict().items()}
    for name, problem in operator.problems.items():
        tensors[f"encoder.{name}.weight"] = problem.encoder.weight_PD
    return {name: value.contiguous() for name, value in tensors.items()}


def _card(
    operator: TrainedOperator, path: Path, programs: dict[str, Path | None]
) -> dict[str, Any]:
    saved = json.loads(checkpoint.load(path, mmap=True)["config"])
    config = {section: saved[section] for section in SECTIONS}
    del config["training"]["latent_cache_dir"]  # a place on the machine that trained it
    is_of_run = path.absolute().parent.name == CHECKPOINTS
    run_dir = path.absolute().parent.parent
    info = RunInfo.load(run_dir) if is_of_run else None
    has_scores = info is not None and path.name == BEST
    return {
        "card": CARD_VERSION,
        "licence": LICENCE,
        "commit": None if info is None else info.commit,
        "config": config,
        "grid_points": operator.grid_points,
        "x_stride": operator.config.encoder.x_stride,
        "history": operator.history,
        "equations": list(operator.config.data.equations),
        "encoder": {"layout": ENCODER, "encode": ENCODE, "decode": DECODE},
        "program": PROGRAM,
        "weights": WEIGHTS,
        "problems": {
            name: {
                "equation": problem.equation.name,
                "formula": problem.equation.formula,
                "parameter": problem.equation.parameter,
                "trained_on": list(problem.parameters),
                "step_dt": problem.step_dt,
                "encoder": {
                    "weight": f"encoder.{name}.weight",
                    "mean": problem.encoder.mean,
                    "std": problem.encoder.std,
                },
                "data": problem.sources,
                "program": None if (program := programs[name]) is None else program.name,
            }
            for name, problem in operator.problems.items()
        },
        "scores": read_file(run_dir / SCORES, json.loads) if has_scores else None,
    }


class _Step(nn.Module):
    """A step from fields to fields, as a program holds it."""

    def __init__(self, operator: TrainedOperator, problem: TrainedProblem) -> None:
        super().__init__()
        self.model, self._problem = operator.model, problem
        self._equations: Sequence[str] = operator.config.data.equations

    def forward(self, u_BHX: Tensor, parameter_B: Tensor) -> Tensor:
        encoder, equation = self._problem.encoder, self._problem.equation.name
        c_BC = conditioning(self._equations, equation, parameter_B, self._problem.step_dt)
        return encoder.decode(self.model(encoder.encode(u_BHX), c_BC))


def _write_program(operator: TrainedOperator, problem: TrainedProblem, path: Path) -> bool:
    """Whether the network could be exported; where not, the log says why."""
    batch = torch.export.Dim("batch", min=1)
    example = (
        torch.zeros(2, operator.history, operator.grid_points),
        torch.full((2,), problem.parameters[0]),
    )
    try:
        program = torch.export.export(
            _Step(operator, problem), example, dynamic_shapes=({0: batch}, {0: batch})
        )
    except Exception as error:  # noqa: BLE001 (what a network does that no program holds)
        log.warning("%s: no program: %s", problem.name, str(error).partition("\n")[0])
        path.unlink(missing_ok=True)  # of an earlier export, with other weights
        return False
    with replacing(path) as file:
        torch.export.save(program, file)
    return True
