"""The config models of the data: the problems, where they lie, how they are generated."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    FiniteFloat,
    Tag,
    create_model,
    field_validator,
    model_validator,
)

from ups.config.urls import web_place
from ups.equations import EQUATIONS, EquationName, in_order, named_after

Split = Literal["train", "val", "test"]
Positive = Annotated[int, Field(gt=0, le=10**12, strict=True)]  # far from what 64 bits hold

SPLITS: tuple[Split, ...] = ("train", "val", "test")


class Model(BaseModel):
    """Base of all models of what comes from outside: frozen, and no key is unknown."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
    )


class Source(Model):
    """An object in the store, a file of a web server or a local one, and its rows of the split."""

    key: str | None = Field(None, min_length=1, description="of an object")
    url: str | None = Field(None, description="of a file of a web server, in place of a key")
    path: Path | None = Field(None, description="of a local file, in place of a key")
    bucket: str | None = Field(None, description="default: data.bucket")
    rows: tuple[int, int] | None = Field(
        None, description="[first, end) of its trajectories, default: all"
    )

    @field_validator("key")
    @classmethod
    def _stays_below_the_root(cls, key: str | None) -> str | None:
        if key is not None and (key.startswith("/") or ".." in key.split("/")):
            raise ValueError(
                f"found {key!r}, expected a key without a leading / and without ..; a local file "
                "is given by path"
            )
        return key

    @field_validator("url")
    @classmethod
    def _names_a_file(cls, url: str | None) -> str | None:
        if url is not None:
            web_place(url)
        return url

    @model_validator(mode="after")
    def _is_one_of_them(self) -> Self:
        given = [name for name in ("key", "url", "path") if getattr(self, name) is not None]
        if not given:
            raise ValueError("found neither key, url nor path, expected one of them")
        if self.bucket is not None and "key" not in given:
            given.append("bucket")
        if len(given) > 1:
            raise ValueError(f"found {' and '.join(given)}, expected one of them")
        return self

    @field_validator("rows")
    @classmethod
    def _rows_in_order(cls, rows: tuple[int, int] | None) -> tuple[int, int] | None:
        if rows is not None and not 0 <= rows[0] < rows[1]:
            raise ValueError(f"found {list(rows)}, which has no rows; expected 0 <= first < end")
        return rows


M = TypeVar("M", bound=Model)


def _with_parameters(model: type[M]) -> type[M]:
    """The model, and an optional field for the parameter of each equation: `nu`, `beta`."""
    fields: dict[str, Any] = {
        e.parameter: (
            FiniteFloat | None,
            Field(None, gt=0, description=f"{e.symbol} of {e.name}, {e.formula}"),
        )
        for e in EQUATIONS.values()
    }
    return create_model(model.__name__, __base__=model, __doc__=model.__doc__, **fields)


@_with_parameters
class Parameter(Model):
    """The value of an equation's parameter."""

    def parameter_of(self, equation: EquationName) -> float | None:
        """The value of the parameter that the equation has."""
        value: float | None = getattr(self, EQUATIONS[equation].parameter)
        return value

    def faults(self, equation: EquationName) -> list[str]:
        """Lines, each with its key: the equation's parameter is missing, or another's is there."""
        own = EQUATIONS[equation].parameter
        is_missing = self.parameter_of(equation) is None
        faults = [f"{own}: missing, the parameter of {equation}"] if is_missing else []
        for key in (e.parameter for e in EQUATIONS.values() if e.parameter != own):
            if getattr(self, key) is not None:
                faults.append(f"{key}: found with {equation}, whose parameter is {own}")
        return faults


class Generate(Parameter):
    """The data set to generate where the object store has none; times and grid are PDEBench's."""

    num_trajectories: dict[Split, Positive]
    seed: int = Field(0, ge=-(2**43), le=2**43)


def _of_all_splits(sources: dict[Split, list[Source]]) -> dict[Split, list[Source]]:
    if missing := [split for split in SPLITS if split not in sources]:
        raise ValueError(f"found no {', '.join(missing)}, expected all of {', '.join(SPLITS)}")
    return sources


SourcesBySplit = Annotated[
    dict[Split, Annotated[list[Source], Field(min_length=1)]], AfterValidator(_of_all_splits)
]


class Problem(Model):
    """Data of one equation with one parameter: what has a cache entry, and a score, of its own."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    equation: EquationName = Field(description="default: the one that the name begins with")
    sources: SourcesBySplit | None = Field(
        None, description="default: the local files {root}/{name}_{split}.h5, or its shards"
    )
    generate: Generate | None = None
    parameter: Parameter | None = Field(None, description="where the files do not hold it")

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, given: Any) -> Any:
        given = {"name": given} if isinstance(given, str) else given
        if isinstance(given, dict) and isinstance(name := given.get("name"), str):
            equation = given.get("equation") or named_after(name)
            return {**given, "equation": equation} if equation else given
        return given

    @property
    def parameter_value(self) -> float | None:
        """Of its equation, where the config has it."""
        return None if self.parameter is None else self.parameter.parameter_of(self.equation)

    def parameter_beside(self, stem: str) -> float | None:
        """What the name of a file, else the config, says: the file may hold it as well."""
        named = EQUATIONS[self.equation].value_in(stem)
        return self.parameter_value if named is None else named

    def two_values(self) -> list[str]:
        """A line where data are generated with another value than they are said to have."""
        key, value = EQUATIONS[self.equation].parameter, self.parameter_value
        other = self.generate and self.generate.parameter_of(self.equation)
        if value is None or other is None or value == other:
            return []
        return [f"{key}: found {value:g}, and {other:g} as generate.{key}: leave parameter out"]

    @property
    def is_local(self) -> bool:
        """Whether it names no object of a store."""
        return all(
            source.path is not None
            for of_split in (self.sources or {}).values()
            for source in of_split
        )


class Data(Model):
    """Which problems there are data of, and where they lie."""

    task: Annotated[
        Annotated[EquationName, Tag("name")] | Annotated[tuple[Problem, ...], Tag("list")],
        Discriminator(lambda given: "list" if isinstance(given, list | tuple) else "name"),
    ] = Field("burgers1d", description="an equation, or a list of tasks: names and sections")
    root: Path = Field(Path("data/pdebench"), description="staged files; PDEBENCH_ROOT overrides")
    keep_sources: bool = Field(
        True, description="false: what streams in goes from the disk once it is encoded"
    )
    bucket: str = "pdebench"
    endpoint_url: str | None = Field(None, description="default: AWS_ENDPOINT_URL_S3")
    grid_points: Positive = Field(1024, description="X")
    sources: SourcesBySplit | None = Field(
        None, description="default: the local files {root}/{task}_{split}.h5, or its shards"
    )
    generate: Generate | None = None
    parameter: Parameter | None = Field(None, description="where the files do not hold it")

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What `task` comes to, whether it names an equation or is a list."""
        if isinstance(self.task, tuple):
            return self.task
        own = {"sources": self.sources, "generate": self.generate, "parameter": self.parameter}
        return (Problem(name=self.task, equation=self.task, **own),)

    @property
    def is_local(self) -> bool:
        """Whether no problem names objects of a store."""
        return all(problem.is_local for problem in self.problems)

    @property
    def equations(self) -> tuple[str, ...]:
        """Of all the problems, each once, in an order that is that of no config."""
        return in_order(problem.equation for problem in self.problems)

    def key_of(self, problem: Problem) -> str:
        """The dotted key below which the problem's sources stand: `data`, or `data.task.1`."""
        return self._key(self.problems.index(problem))

    def _key(self, index: int) -> str:
        return f"data.task.{index}" if isinstance(self.task, tuple) else "data"

    def place_of(self, source: Source) -> tuple[str, str]:
        """Bucket and key, of an object; of a file of a web server `https://host` and the rest."""
        if source.url is not None:
            return web_place(source.url)
        assert source.key is not None, "asked for the place of a local file"
        return source.bucket or self.bucket, source.key

    def label(self, problem: Problem, split: str) -> str:
        """A split in messages and names: `train`, after its problem where there are more."""
        return split if len(self.problems) == 1 else f"{problem.name} {split}"

    @field_validator("endpoint_url")
    @classmethod
    def _no_credentials(cls, url: str | None) -> str | None:
        if url is not None and urlsplit(url).username is not None:
            raise ValueError(
                "holds credentials, which would be logged: give them by AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY"
            )
        return url

    def disagreements(self) -> list[str]:
        """Lines about fields that are valid each for itself, and not together."""
        faults = [] if self.problems else ["data.task: found an empty list, expected tasks"]
        names = [problem.name for problem in self.problems]
        if isinstance(self.task, tuple):
            faults += [
                f"data.{key}: found beside a list of tasks; each task has its own: move it to "
                f"data.task.0.{key}, and give the other tasks theirs"
                for key in ("sources", "generate", "parameter")
                if getattr(self, key) is not None
            ]
        faults += [
            f"data.task.{i}.name: found {name!r} again, expected another name for each task"
            for i, name in enumerate(names)
            if name in names[:i]
        ]
        for i, problem in enumerate(self.problems):
            for key in ("generate", "parameter"):
                if (given := getattr(problem, key)) is not None:
                    lines = given.faults(problem.equation)
                    faults += [f"{self._key(i)}.{key}.{line}" for line in lines]
            faults += [f"{self._key(i)}.parameter.{line}" for line in problem.two_values()]
            if problem.generate is not None:
                faults += [
                    f"{self._key(i)}.sources.{split}.{number}.{name}: found beside generate, which "
                    "puts objects into the store: give a key, or leave generate out"
                    for split, of_split in (problem.sources or {}).items()
                    for number, source in enumerate(of_split)
                    for name in ("url", "path")
                    if getattr(source, name) is not None
                ]
        return faults
