"""The sections of a config and every default; those of `data` stand in `ups.config.data`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, FiniteFloat, field_validator, model_validator

from ups.config.data import Data, Model, Positive, Problem
from ups.config.operators import LatentTransformer, Operator
from ups.config.text import shortened
from ups.config.tokens import such_as

StoredDtype = Literal["float16", "bfloat16", "float32"]
REMOTE = re.compile(r"s3://[a-z0-9][a-z0-9.-]*[a-z0-9](/(?!\.\.?(/|$))[^/@?#]+)*/?")
Beta = Annotated[float, Field(ge=0, lt=1)]
OffIsAWord = BeforeValidator(lambda given: "off" if given is False else given)  # YAML 1.1's bool
OnIsAWord = BeforeValidator(lambda given: "on" if given is True else given)


class Latent(Model):
    dim: Positive = Field(32, description="D, channels of a token")
    tokens: Positive = Field(16, description="K, tokens of a frame")


class Encoder(Model):
    """How a frame becomes latents, and which of the data's points and frames are encoded."""

    kind: Literal["patch_subspace", "identity"] = Field(
        "patch_subspace", description="identity: the field's own values, tokens × dim of them"
    )
    x_stride: Positive = Field(1, description="of the grid's points every x_stride-th is encoded")
    t_stride: Positive = Field(1, description="of the saved frames every t_stride-th is encoded")
    fit_trajectories: Positive = 64
    fit_seed: Annotated[int, Field(ge=0)] = 0
    normalise: bool = True


class Encode(Model):
    """What encodes the latents: this machine, or several."""

    engine: Literal["local", "dask"] = Field(
        "local", description="dask: a Dask cluster encodes, then training begins; needs its extra"
    )
    address: str | None = Field(
        None,
        min_length=1,
        description="of the cluster's scheduler, tcp://HOST:8786; default: a cluster of this "
        "machine, while it encodes",
    )


class Training(Model):
    batch_size: Positive = Field(
        12, description="trajectories per step, of which it takes all pairs of frames"
    )
    pairs_per_step: Positive | None = Field(
        None, description="pairs per step, drawn from all trajectories, in place of batch_size"
    )
    early_pairs: FiniteFloat = Field(
        1.0,
        ge=0,
        description="a pair that begins after t steps is drawn by (1 + t) ** -early_pairs",
    )
    accumulation_steps: Positive = 1
    ranks: Positive | Literal["auto"] = Field(
        1, description="processes that share each step's batch; auto: one for each GPU"
    )
    shard: bool = Field(
        False, description="ranks hold a part each of weights, gradients and optimizer (FSDP2)"
    )
    rendezvous_s: FiniteFloat = Field(
        25.0, gt=0, description="seconds that ranks wait for each other before they begin"
    )
    time_stride: Positive = Field(2, description="s, encoded frames per operator step")
    rollout_horizon: Positive = Field(1, description="h, operator steps per training sample")
    latent_cache_dir: Path = Path("data/latent_cache")
    latent_cache_max_gb: FiniteFloat | None = Field(
        None, gt=0, description="removes what was used least recently after a build; off if empty"
    )
    latent_cache_dtype: StoredDtype = "float16"
    encode_batch_size: Positive = Field(16, description="trajectories per encoder batch")
    num_workers: Annotated[int, Field(ge=0)] = Field(
        4, description="threads that write or load chunks"
    )
    pin_memory: bool = True
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compile: Annotated[Literal["off", "graph", "inductor"], OffIsAWord] = "off"
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 on a GPU")
    grad_clip: float = Field(1.0, gt=0, description="norm of the gradient; .inf clips none")
    ema_decay: float = Field(0.999, ge=0, lt=1)
    seed: int = Field(0, ge=-(2**43), le=2**43)
    log_every: Positive = Field(50, description="steps between readings of the loss")

    @property
    def items_per_step(self) -> int:
        """Trajectories, or pairs, of a step, of all ranks together."""
        return (self.pairs_per_step or self.batch_size) * self.accumulation_steps


class Cache(Model):
    """The latent cache beyond this machine; where it lies here, `training` says."""

    remote: str | None = Field(
        None, description="s3://bucket/prefix of latents that machines share; off if empty"
    )

    @field_validator("remote")
    @classmethod
    def _names_a_folder(cls, remote: str | None) -> str | None:
        if remote is not None and "@" in remote:
            raise ValueError(
                "holds credentials, which would be logged: give them by AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY"
            )
        if remote is not None and not REMOTE.fullmatch(remote):
            raise ValueError(
                f"found {shortened(remote)}, expected s3://bucket/prefix; "
                "the store's address is data.endpoint_url"
            )
        return remote


class Optimizer(Model):
    lr: FiniteFloat = Field(1e-3, gt=0)
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    weight_decay: FiniteFloat = Field(0.01, ge=0)


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
    given_frames: Positive | None = Field(
        None, description="frames before a rollout, not scored; default: operator.history"
    )
    batch_size: Positive = Field(32, description="trajectories per rollout batch")
    num_examples: Annotated[int, Field(ge=0)] = Field(
        3, description="trajectories drawn in the picture; 0: no picture"
    )


class Features(Model):
    """The optimisations, each of which can be switched off alone."""

    parallel_downloads: bool = Field(True, description="fetch splits, and ranges of them, at once")
    gpu_encode: bool = Field(True, description="encode on the GPU where there is one")
    parallel_encode: bool = Field(True, description="overlap reading, encoding and writing")
    reuse_cache: bool = Field(True, description="use a cache entry with the same key")
    preload: Annotated[Literal["auto", "gpu", "ram", "disk", "off"], OffIsAWord] = Field(
        "auto",
        description="where training reads latents; auto on a CPU: mapped; off: encode on demand",
    )
    stream: Annotated[Literal["auto", "on", "off"], OffIsAWord, OnIsAWord] = Field(
        "auto", description="train on the first rows while the others are fetched and encoded"
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
            stream="off",
            warm_up=False,
        )

    @property
    def is_legacy(self) -> bool:
        """Whether all are off."""
        return self == Features.legacy()

    @property
    def may_stream(self) -> bool:
        """Whether none of them rules a streaming start out."""
        return self.stream != "off" and self.preload not in ("disk", "off") and not self.is_legacy


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
    price_per_hour: FiniteFloat = Field(1.89, ge=0, description="of the machine, in dollars")


class RunConfig(Model):
    """All that a run is made with."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    runs_dir: Path = Path("runs")
    data: Data = Data()
    latent: Latent = Latent()
    encoder: Encoder = Encoder()
    encode: Encode = Encode()
    operator: Operator = LatentTransformer()
    training: Training = Training()
    cache: Cache = Cache()
    stages: Stages = Stages()
    checkpoint: Checkpoint = Checkpoint()
    evaluation: Evaluation = Evaluation()
    features: Features = Features()
    logging: Logging = Logging()
    startup: Startup = Startup()

    @property
    def encoded_points(self) -> int:
        """X, grid points of an encoded frame."""
        return self.data.grid_points // self.encoder.x_stride

    @property
    def patch_points(self) -> int:
        """P, grid points of a patch."""
        return self.encoded_points // self.latent.tokens

    def tokens_for(self, points: int) -> str:
        """The end of a message: numbers of tokens for so many points, near to latent.tokens."""
        dim = 0 if self.encoder.kind == "identity" else self.latent.dim
        return such_as(self.operator, points, self.latent.tokens, dim)

    @property
    def given_frames(self) -> int:
        """Frames, one operator step apart, that a rollout is given and that are not scored."""
        return self.evaluation.given_frames or self.operator.history

    @property
    def encodes_on_cluster(self) -> bool:
        """Whether a Dask cluster builds the cache entries; legacy mode never asks one."""
        return self.encode.engine == "dask" and not self.features.is_legacy

    @property
    def may_stream(self) -> bool:
        """Whether nothing in the config rules a streaming start out."""
        return self.features.may_stream and not self.encodes_on_cluster

    @property
    def data_root(self) -> Path:
        """The folder of the staged files."""
        return Path(os.environ.get("PDEBENCH_ROOT") or self.data.root)

    def of_problem(self, problem: Problem) -> ProblemConfig:
        """The config of one of its problems."""
        only = {"task": (problem,), "sources": None, "generate": None, "parameter": None}
        data = self.data.model_copy(update=only)
        return ProblemConfig.model_construct(**{**dict(self), "data": data})

    def only_problem(self) -> ProblemConfig:
        """This config as that of its problem, of which it must have one."""
        assert len(self.data.problems) == 1, self.data.task
        return ProblemConfig.model_construct(**dict(self))

    def by_problem(self) -> dict[str, ProblemConfig]:
        """Problem name → its config."""
        return {problem.name: self.of_problem(problem) for problem in self.data.problems}

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        faults = self.data.disagreements()
        latent, encoder, operator = self.latent, self.encoder, self.operator
        if self.data.grid_points % encoder.x_stride:
            faults.append(
                f"encoder.x_stride: found {encoder.x_stride}, expected a divisor of "
                f"data.grid_points ({self.data.grid_points})"
            )
        elif self.encoded_points % latent.tokens:
            faults.append(
                f"latent.tokens: found {latent.tokens}, expected a divisor of the "
                f"{self.encoded_points} points of an encoded frame"
                f"{self.tokens_for(self.encoded_points)}"
            )
        elif encoder.kind == "identity" and latent.tokens * latent.dim != self.encoded_points:
            faults.append(
                f"latent.dim: found {latent.dim}, expected {self.patch_points}: with encoder.kind "
                f"identity, tokens × dim are the {self.encoded_points} points of an encoded frame"
            )
        if operator.on_grid and encoder.kind != "identity":
            faults.append(
                f"encoder.kind: found {encoder.kind}, expected identity with operator.kind "
                f"{operator.kind}, which is a model of the field itself"
            )
        faults += operator.faults(latent.tokens, latent.dim)
        if self.given_frames < operator.history:
            faults.append(
                f"evaluation.given_frames: found {self.given_frames}, expected at least "
                f"operator.history ({operator.history})"
            )
        faults += self._of_the_cluster()
        training = self.training
        if training.compile == "graph" and training.accumulation_steps > 1:
            faults.append(
                f"training.accumulation_steps: found {training.accumulation_steps}, expected 1 "
                "with training.compile graph, which captures a whole step"
            )
        if training.shard and training.compile != "off":
            faults.append(
                f"training.compile: found {training.compile}, expected off with training.shard, "
                "which gathers weights in the middle of a step"
            )
        if training.shard and operator.kind == "fno":
            faults.append(
                "training.shard: found true, expected false with operator.kind fno, whose weights "
                "are real and complex: FSDP2 takes those of one type alone"
            )
        if training.ranks != "auto" and training.ranks > training.items_per_step:
            what = "trajectories" if training.pairs_per_step is None else "pairs"
            faults.append(
                f"training.ranks: found {training.ranks}, expected no more than the "
                f"{training.items_per_step} {what} of a step, which they share"
            )
        if training.shard and self.features.stream == "on":
            faults.append(
                "features.stream: found on, expected auto or off with training.shard, whose ranks "
                "begin once all latents are there"
            )
        if faults:
            raise ValueError("\n".join(faults))
        return self

    def _of_the_cluster(self) -> list[str]:
        """What does not go with `encode`."""
        features = self.features
        if self.encode.engine == "local":
            if self.encode.address is None:
                return []
            return [
                f"encode.address: found {self.encode.address}, expected none with encode.engine "
                "local: set that to dask"
            ]
        if features.preload == "off":
            return [
                "encode.engine: found dask, expected local with features.preload off, which "
                "builds no cache entry"
            ]
        if features.stream == "on":
            return [
                "features.stream: found on, expected auto or off with encode.engine dask, which "
                "encodes before training begins"
            ]
        return []


class ProblemConfig(RunConfig):
    """The config of one PDE problem: what determines its files and its cache entry."""

    @property
    def problem(self) -> Problem:
        """The only one that it has."""
        (problem,) = self.data.problems
        return problem
