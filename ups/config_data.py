"""The config models of the data: which tasks there are, where they lie, how they are generated."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from ups.equations import EQUATIONS, EquationName, in_order, named_after

Split = Literal["train", "val", "test"]
Positive = Annotated[int, Field(gt=0, strict=True)]

SPLITS: tuple[Split, ...] = ("train", "val", "test")
OF_ONE_TASK = ("sources", "generate")  # keys that stand below a task where there are several


class Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(Model):
    """An object in the store, and the rows (trajectories) of it that belong to the split."""

    key: str = Field(min_length=1)
    bucket: str | None = Field(None, description="default: data.bucket")
    rows: tuple[int, int] | None = Field(None, description="[first, end), default: all")

    @model_validator(mode="after")
    def _stays_below_the_root(self) -> Self:
        if self.key.startswith("/") or ".." in self.key.split("/"):
            raise ValueError(f"key {self.key!r}: expected a key without a leading / and without ..")
        return self

    @model_validator(mode="after")
    def _rows_in_order(self) -> Self:
        if self.rows is not None and not 0 <= self.rows[0] < self.rows[1]:
            raise ValueError(f"rows {list(self.rows)} are empty: expected 0 <= first < end")
        return self


class Generate(Model):
    """The data set to generate where the object store has none; times and grid are PDEBench's."""

    nu: float | None = Field(None, gt=0, description="ν of burgers1d, u_t + (u²/2)_x = (ν/π) u_xx")
    beta: float | None = Field(None, gt=0, description="β of advection1d, u_t + β u_x = 0")
    num_trajectories: dict[Split, Positive]
    seed: int = 0

    def parameter_of(self, equation: EquationName) -> float | None:
        """The value of the parameter that the equation has."""
        value: float | None = getattr(self, EQUATIONS[equation].parameter)
        return value

    def faults(self, equation: EquationName) -> list[str]:
        """Lines, each with its key: the equation's parameter is missing, or another's is there."""
        own = EQUATIONS[equation].parameter
        others = [e.parameter for e in EQUATIONS.values() if e.parameter != own]
        faults = [
            f"{key}: found with {equation}, whose parameter is {own}"
            for key in others
            if getattr(self, key) is not None
        ]
        if self.parameter_of(equation) is None:
            faults.insert(0, f"{own}: missing, {equation} is generated with it")
        return faults


SourcesBySplit = dict[Split, Annotated[list[Source], Field(min_length=1)]]


def _check_all_splits(sources: SourcesBySplit | None) -> None:
    if sources is not None and (missing := [s for s in SPLITS if s not in sources]):
        raise ValueError(f"sources lack {', '.join(missing)}: name all of {', '.join(SPLITS)}")


class Task(Model):
    """Data of one equation with one parameter: what has a cache entry, and a score, of its own."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    equation: EquationName = Field(description="default: the one that the name begins with")
    sources: SourcesBySplit | None = Field(
        None, description="default: the local files {root}/{name}_{split}.h5, or its shards"
    )
    generate: Generate | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, given: Any) -> Any:
        given = {"name": given} if isinstance(given, str) else given
        if isinstance(given, dict) and isinstance(name := given.get("name"), str):
            equation = given.get("equation") or named_after(name)
            return {**given, "equation": equation} if equation else given
        return given

    @model_validator(mode="after")
    def _sources_are_whole(self) -> Self:
        _check_all_splits(self.sources)
        return self


def beside_a_list(key: str) -> str:
    return (
        f"data.{key}: found beside a list of tasks; each task has its own: move it to "
        f"data.task.0.{key}, and give the other tasks theirs"
    )


class Data(Model):
    task: Annotated[
        Annotated[EquationName, Tag("name")] | Annotated[tuple[Task, ...], Tag("list")],
        Discriminator(lambda given: "list" if isinstance(given, list | tuple) else "name"),
    ] = Field("burgers1d", description="an equation, or a list of tasks: names and sections")
    root: Path = Field(Path("data/pdebench"), description="staged files; PDEBENCH_ROOT overrides")
    bucket: str = "pdebench"
    endpoint_url: str | None = Field(None, description="default: AWS_ENDPOINT_URL_S3")
    grid_points: Positive = Field(1024, description="X")
    sources: SourcesBySplit | None = Field(
        None, description="default: the local files {root}/{task}_{split}.h5, or its shards"
    )
    generate: Generate | None = None

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What `task` comes to, whether it names an equation or is a list."""
        if isinstance(self.task, tuple):
            return self.task
        # Not validated again: of a config with faults, sources may lack splits.
        return (
            Task.model_construct(
                name=self.task, equation=self.task, sources=self.sources, generate=self.generate
            ),
        )

    @property
    def equations(self) -> tuple[str, ...]:
        """Of all the tasks, each once, in an order that is that of no config."""
        return in_order(task.equation for task in self.tasks)

    @property
    def only_task(self) -> Task:
        """Of the config of one task, as `RunConfig.of_task` makes it."""
        (task,) = self.tasks
        return task

    def named(self, name: str) -> Task:
        """The task of this name."""
        return next(task for task in self.tasks if task.name == name)

    def key_of(self, task: Task) -> str:
        """The dotted key below which the task's sources stand: `data`, or `data.task.1`."""
        return f"data.task.{self.tasks.index(task)}" if isinstance(self.task, tuple) else "data"

    def label(self, task: Task, split: str) -> str:
        """A split in messages and names: `train`, with its task before it where there are more."""
        return split if len(self.tasks) == 1 else f"{task.name} {split}"

    @field_validator("endpoint_url")
    @classmethod
    def _no_credentials(cls, url: str | None) -> str | None:
        if url is not None and urlsplit(url).username is not None:
            raise ValueError(
                "holds credentials, which would be logged: give them by AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY"
            )
        return url

    @model_validator(mode="after")
    def _sources_are_whole(self) -> Self:
        _check_all_splits(self.sources)
        return self

    def disagreements(self) -> list[str]:
        """Lines about fields that are valid each for itself, and not together."""
        faults = [] if self.tasks else ["data.task: found an empty list, expected tasks"]
        names = [task.name for task in self.tasks]
        if isinstance(self.task, tuple):
            faults += [beside_a_list(k) for k in OF_ONE_TASK if getattr(self, k) is not None]
        faults += [
            f"data.task.{i}.name: found {name!r} again, expected another name for each task"
            for i, name in enumerate(names)
            if name in names[:i]
        ]
        for i, task in enumerate(self.tasks):
            key = f"data.task.{i}" if isinstance(self.task, tuple) else "data"
            lines = task.generate.faults(task.equation) if task.generate else []
            faults += [f"{key}.generate.{line}" for line in lines]
        return faults
