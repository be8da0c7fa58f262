"""Every config model and every default; YAML in, frozen models out (those of `data` in
`ups.config_data`).

`load_config` is the only way in: it reads the YAML, applies dotted overrides, and reports every
fault at once, each with its YAML key, what was found and what is allowed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from ups.config_data import SPLITS as SPLITS
from ups.config_data import Data, Positive, Task
from ups.config_data import Generate as Generate
from ups.config_data import Model as Model
from ups.config_data import Source as Source
from ups.config_data import Split as Split
from ups.errors import ConfigError

CONFIG_DIR = Path(__file__).resolve().parents[1] / "deployments" / "configs"
StoredDtype = Literal["float16", "bfloat16", "float32"]
Beta = Annotated[float, Field(ge=0, lt=1)]


class Latent(Model):
    dim: Positive = Field(32, description="D, channels of a token")
    tokens: Positive = Field(16, description="K, tokens of a frame")


class Encoder(Model):
    kind: Literal["patch_subspace"] = "patch_subspace"
    fit_trajectories: Positive = 64
    fit_seed: int = 0
    normalise: bool = True


class Operator(Model):
    hidden_dim: Positive = 128
    num_heads: Positive = 4
    mlp_ratio: float = Field(4.0, gt=0)
    depths: Annotated[list[Positive], Field(min_length=1)] = Field(
        [2, 2, 2], description="blocks per stage of the U: odd length, tokens halve per stage"
    )

    @property
    def num_levels(self) -> int:
        """Resolutions of the U: 2 for depths of length 3."""
        return len(self.depths) // 2 + 1


class Training(Model):
    batch_size: Positive = Field(12, description="trajectories per step")
    accumulation_steps: Positive = 1
    time_stride: Positive = Field(2, description="s, saved frames per operator step")
    rollout_horizon: Positive = Field(1, description="h, operator steps per training sample")
    latent_cache_dir: Path = Path("data/latent_cache")
    latent_cache_max_gb: float | None = Field(
        None, gt=0, description="removes what was used least recently after a build; off if empty"
    )
    latent_cache_dtype: StoredDtype = "float16"
    encode_batch_size: Positive = Field(16, description="trajectories per encoder batch")
    num_workers: Annotated[int, Field(ge=0)] = Field(
        4, description="threads that write or load chunks"
    )
    pin_memory: bool = True
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compile: Literal["off", "graph", "inductor"] = "off"
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 on a GPU")
    grad_clip: float = Field(1.0, gt=0)
    ema_decay: float = Field(0.999, ge=0, lt=1)
    seed: int = 0
    log_every: Positive = Field(50, description="steps between readings of the loss")


class Optimizer(Model):
    lr: float = Field(1e-3, gt=0)
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    weight_decay: float = Field(0.01, ge=0)


class OperatorStage(Model):
    epochs: Positive = 25
    max_steps: Positive | None = Field(None, description="optimizer steps; off if empty")
    patience: Positive | None = Field(None, description="epochs without a better val; off if empty")
    warmup_fraction: float = Field(0.05, ge=0, lt=1)
    optimizer: Optimizer = Optimizer()


class Stages(Model):
    operator: OperatorStage = OperatorStage()


class Checkpoint(Model):
    every_epochs: Positive = 1


class Evaluation(Model):
    batch_size: Positive = Field(32, description="trajectories per rollout batch")
    num_examples: Positive = Field(3, description="trajectories drawn in the picture")


class Features(Model):
    """The optimisations, each of which can be switched off alone."""

    parallel_downloads: bool = Field(True, description="fetch splits, and ranges of them, at once")
    gpu_encode: bool = Field(True, description="encode on the GPU where there is one")
    parallel_encode: bool = Field(True, description="overlap reading, encoding and writing")
    reuse_cache: bool = Field(True, description="use a cache entry with the same key")
    preload: Literal["auto", "gpu", "ram", "disk", "off"] = Field(
        "auto", description="where training reads latents; off: encode on demand"
    )
    warm_up: bool = Field(True, description="import, build and warm the model beside the downloads")

    @classmethod
    def legacy(cls) -> Features:
        """All off: the fallback, and the baseline that benchmarks measure the rest against."""
        return cls(
            parallel_downloads=False,
            gpu_encode=False,
            parallel_encode=False,
            reuse_cache=False,
            preload="disk",
            warm_up=False,
        )

    @property
    def is_legacy(self) -> bool:
        return self == Features.legacy()


class Wandb(Model):
    enabled: bool = Field(False, description="needs the extra wandb; offline without a key")
    project: str = Field("ups-train", min_length=1)
    entity: str | None = Field(None, description="default: the one that the key belongs to")


class Tensorboard(Model):
    enabled: bool = Field(
        False, description="event files in the run's folder; needs the extra tensorboard"
    )


class Logging(Model):
    """Trackers beside the run's folder, which holds everything without them, too."""

    wandb: Wandb = Wandb()
    tensorboard: Tensorboard = Tensorboard()


class Startup(Model):
    price_per_hour: float = Field(1.89, ge=0, description="of the machine, in dollars")


class RunConfig(Model):
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    runs_dir: Path = Path("runs")
    data: Data = Data()
    latent: Latent = Latent()
    encoder: Encoder = Encoder()
    operator: Operator = Operator()
    training: Training = Training()
    stages: Stages = Stages()
    checkpoint: Checkpoint = Checkpoint()
    evaluation: Evaluation = Evaluation()
    features: Features = Features()
    logging: Logging = Logging()
    startup: Startup = Startup()

    @property
    def patch_points(self) -> int:
        """P, grid points of a patch."""
        return self.data.grid_points // self.latent.tokens

    @property
    def data_root(self) -> Path:
        return Path(os.environ.get("PDEBENCH_ROOT") or self.data.root)

    def of_task(self, task: Task) -> RunConfig:
        """The config of one of the tasks alone: what determines its files and its cache entry."""
        alone = {"task": (task,), "sources": None, "generate": None}
        return self.model_copy(update={"data": self.data.model_copy(update=alone)})

    def by_task(self) -> dict[str, RunConfig]:
        """Task name → its config."""
        return {task.name: self.of_task(task) for task in self.data.tasks}

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        faults = self.data.disagreements()
        grid, tokens, op = self.data.grid_points, self.latent.tokens, self.operator
        if grid % tokens:
            faults.append(
                f"latent.tokens: found {tokens}, expected a divisor of data.grid_points ({grid})"
            )
        if len(op.depths) % 2 == 0:
            faults.append(f"operator.depths: found {op.depths}, expected an odd number of stages")
        elif tokens % 2 ** (op.num_levels - 1):
            faults.append(
                f"latent.tokens: found {tokens}, expected a multiple of "
                f"{2 ** (op.num_levels - 1)}, which operator.depths {op.depths} halves down to"
            )
        if op.hidden_dim % (2 * op.num_heads):
            faults.append(
                f"operator.hidden_dim: found {op.hidden_dim}, expected a multiple of "
                f"2 * operator.num_heads ({2 * op.num_heads})"
            )
        training = self.training
        if training.compile == "graph" and training.accumulation_steps > 1:
            faults.append(
                f"training.accumulation_steps: found {training.accumulation_steps}, expected 1 "
                "with training.compile graph, which captures a whole step"
            )
        if faults:
            raise Disagreement(faults, self)
        return self


class Disagreement(ValueError):
    """Fields that are valid each for itself, and not together; `config` has them as they are."""

    def __init__(self, faults: Sequence[str], config: RunConfig) -> None:
        super().__init__("\n".join(faults))
        self.config = config


@dataclass(frozen=True, slots=True)
class Parsed:
    """A config as far as it can be read.

    Attributes:
        where: names it in messages.
        config: with defaults for what is in `replaced`; where there are faults its fields need
            not agree, and `data.sources` may lack splits or sources.
        faults: a line for each, which begins with its key; empty for a valid config.
        replaced: the dotted keys that hold no value that could be used.
        disagreements: those of the faults that are of fields valid each for itself.
    """

    where: str
    config: RunConfig
    faults: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    disagreements: tuple[str, ...] = ()

    def valid(self) -> RunConfig:
        """
        Raises:
            ConfigError: there are faults; one line for each.
        """
        if self.faults:
            raise ConfigError("\n".join(f"{self.where}: {fault}" for fault in self.faults))
        return self.config


def load_config(name_or_path: str | Path, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """Read a config by path, or by name from `deployments/configs`, and apply dotted overrides.

    Raises:
        ConfigError: it is not there, is not YAML, or has faults; one line per fault.
    """
    return read_config(name_or_path, overrides).valid()


def read_config(name_or_path: str | Path, overrides: Mapping[str, Any] | None = None) -> Parsed:
    """The same, as far as it can be read: faulty values raise nothing.

    Raises:
        ConfigError: it is not there, is not YAML, or an override leads nowhere.
    """
    path = _find(str(name_or_path))
    try:
        tree = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: found {type(tree).__name__}, expected a mapping of sections")
    for dotted, value in (overrides or {}).items():
        _set(tree, dotted, value)
    return _parse(tree, where=path.name)


def parse_config(tree: Mapping[str, Any], where: str = "config") -> RunConfig:
    """Validate a config already read; `where` names it in the message of a ConfigError."""
    return _parse(tree, where).valid()


def _parse(tree: Mapping[str, Any], where: str) -> Parsed:
    try:
        return Parsed(where, RunConfig.model_validate(tree))
    except ValidationError as error:
        from ups.config_faults import salvage  # it reads the models above

        return salvage(tree, where, error)


def dump_config(config: RunConfig) -> str:
    """The resolved config as YAML that `load_config` takes."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _find(name: str) -> Path:
    known = {p.stem: p for p in sorted(CONFIG_DIR.glob("*.yaml"))}
    path = known.get(name, Path(name))
    if not path.is_file():
        raise ConfigError(f"no config {name!r}: expected a path or one of {', '.join(known)}")
    return path


def _set(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for i, part in enumerate(parents):
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise ConfigError(
                f"override {dotted!r}: {'.'.join(parents[: i + 1])} is a value, not a section"
            )
    tree[last] = value
