"""What a checkpoint says of the problems that it was trained on: all that predicting needs of them.

A checkpoint of an earlier version does not say all of it: the rest comes from the cache entry that
it was trained from, where that is still there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ups.config import ProblemConfig, RunConfig, parse_config
from ups.equations import EQUATIONS, Equation
from ups.errors import CheckpointError
from ups.latents.encode import PatchEncoder
from ups.latents.store import Manifest, list_entries
from ups.training.checkpoint import ENCODER_TOLERANCE

SECTIONS = ("name", "data", "latent", "encoder", "operator")
ALGORITHM_BEFORE = 1  # of the encoders that such checkpoints were trained with


@dataclass(frozen=True, slots=True)
class TrainedProblem:
    """A problem that an operator was trained on.

    Attributes:
        parameters: the values of ν or β, in increasing order.
        step_dt: time of an operator step, in the equation's units.
        sources: the content of its data, as in the cache key; None where that is not known.
    """

    name: str
    equation: Equation
    parameters: tuple[float, ...]
    step_dt: float
    encoder: PatchEncoder
    sources: dict[str, Any] | None

    def __str__(self) -> str:
        values = " and ".join(f"{value:g}" for value in self.parameters)
        return f"{self.name} ({self.equation.symbol} = {values})"


def config_of(path: Path, record: dict[str, Any]) -> RunConfig:
    """The config of a checkpoint, as far as what it predicts depends on it.

    Raises:
        CheckpointError: it is not one that this version knows.
    """
    try:
        saved = json.loads(record["config"])
        tree = {section: saved[section] for section in SECTIONS}
        tree["training"] = {"time_stride": saved["training"]["time_stride"]}
        return parse_config(tree, f"the config in {path}")
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} holds no config that can be read: {error!r}") from error


def problems_of(
    path: Path, record: dict[str, Any], config: RunConfig, device: str
) -> dict[str, TrainedProblem]:
    """Name → problem, of all that a checkpoint was trained on.

    Raises:
        CheckpointError: it is of an earlier version, and what it lacks is not in the cache.
    """
    cache_dir = Path(json.loads(record["config"])["training"]["latent_cache_dir"])
    saved, found = record.get("trained_on", {}), {}
    for name, own_config in config.by_problem().items():
        said = saved.get(name, {})
        if "step_dt" not in said:
            said |= _from_cache(path, own_config, cache_dir, said)
        found[name] = TrainedProblem(
            name=name,
            equation=EQUATIONS[own_config.problem.equation],
            parameters=tuple(said["parameters"]),
            step_dt=said["step_dt"],
            encoder=PatchEncoder.from_manifest(said["encoder"]).to(device),
            sources=said.get("sources"),
        )
    return found


def _from_cache(
    path: Path, config: ProblemConfig, cache_dir: Path, said: dict[str, Any]
) -> dict[str, Any]:
    entries = [entry for entry in list_entries(cache_dir) if _is_of(entry, config, said)]
    lacks = "step time" if "encoder" in said else "encoder"
    missing = f"{path} is of an earlier version, without the {lacks} of {config.problem.name}"
    if not entries:
        raise CheckpointError(
            f"{missing}, and {cache_dir.absolute()} has no entry of its data: go where the cache "
            "is that it was trained from, or train anew"
        )
    if not _are_alike(entries):
        keys = ", ".join(entry.config_hash for entry in entries)
        raise CheckpointError(
            f"{missing}, and {cache_dir.absolute()} has several entries that it may have been "
            f"trained from, {keys}: remove the others (`ups cache rm`), or train anew"
        )
    files = entries[-1].of_split("train")
    return {
        "encoder": said.get("encoder", entries[-1].encoder),
        "parameters": sorted({value for file in files for value in file.parameters.values()}),
        "step_dt": files[0].dt * config.training.time_stride,
    }


def _is_of(entry: Manifest, config: ProblemConfig, said: dict[str, Any]) -> bool:
    """Whether a checkpoint of this config may have been trained from an entry."""
    fields, encoder = entry.key_fields, config.encoder.model_dump()
    wanted = {
        "task": config.problem.equation,
        "grid_points": config.data.grid_points,
        "latent": config.latent.model_dump(),
        **({"sources": said["sources"]} if "sources" in said else {}),
    }
    if any(fields.get(name) != value for name, value in wanted.items()):
        return False
    if fields["encoder"]["algorithm"] != ALGORITHM_BEFORE:
        return False
    if any(encoder[name] != value for name, value in fields["encoder"].items() if name in encoder):
        return False
    return "encoder" not in said or _distance(said["encoder"], entry.encoder) <= ENCODER_TOLERANCE


def _are_alike(entries: Iterable[Manifest]) -> bool:
    first, *others = entries
    told = [(file.dt, file.parameters) for file in first.files]
    return all(
        _distance(first.encoder, other.encoder) <= ENCODER_TOLERANCE
        and [(file.dt, file.parameters) for file in other.files] == told
        for other in others
    )


def _distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    return PatchEncoder.from_manifest(one).distance(PatchEncoder.from_manifest(other))
