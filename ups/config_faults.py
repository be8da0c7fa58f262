"""All faults of a config at once, in words, and the rest of it, which can still be used."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from ups.config import SPLITS, Disagreement, Parsed, RunConfig, Source, Split
from ups.config_data import OF_ONE_TASK, Task, beside_a_list

UNNAMED = "unnamed"


def salvage(tree: Mapping[str, Any], where: str, error: ValidationError) -> Parsed:
    """A config with `error` as far as it can be read.

    What is faulty is taken out, so that its default stands in its place, until all fields are
    valid. Only then do the rules apply that they have to fulfil together.
    """
    return _Salvage(tree).run(where, error)


class _Salvage:
    def __init__(self, tree: Mapping[str, Any]) -> None:
        self.rest = copy.deepcopy(dict(tree))
        self.sources: Any = None
        self.tasks: Any = None
        self.faults: list[str] = []
        self.replaced: list[str] = []
        self.disagreements: tuple[str, ...] = ()

    def run(self, where: str, error: ValidationError) -> Parsed:
        config = None
        while config is None:
            is_known = tuple(self.replaced)
            before = repr(self.rest)
            for fault in map(_at_its_key, error.errors()):
                lines = self._note(fault, is_known)
                if not fault["loc"]:
                    config, self.disagreements = _disagreeing(fault), tuple(lines)
                else:
                    self._remove(fault)
            if config is None and repr(self.rest) == before:  # nothing left that could be removed
                config = RunConfig(name=UNNAMED)
                self.replaced += list(RunConfig.model_fields)
            if config is None:
                try:
                    config = RunConfig.model_validate(self.rest)
                except ValidationError as next_error:
                    error = next_error
        if self.sources is not None:
            data = config.data.model_copy(update={"sources": valid_sources(self.sources)})
            config = config.model_copy(update={"data": data})
        if self.tasks is not None:
            data = config.data.model_copy(update={"task": valid_tasks(self.tasks)})
            config = config.model_copy(update={"data": data})
        return Parsed(where, config, tuple(self.faults), tuple(self.replaced), self.disagreements)

    def _note(self, fault: Any, is_known: Iterable[str]) -> list[str]:
        """Keep its lines, without those that only follow from what was taken out; returns them."""
        new = [
            line
            for line in explain(fault)
            if line not in self.faults
            and not any(re.search(rf"(?<![\w.]){re.escape(key)}\b", line) for key in is_known)
        ]
        self.faults += new
        return new

    def _remove(self, fault: Any) -> None:
        """Take out what is faulty."""
        location = fault["loc"]
        key = ".".join(str(part) for part in location)
        if any(key == gone or key.startswith(f"{gone}.") for gone in self.replaced):
            return
        data = self.rest.get("data")
        of_sources = location[:2] == ("data", "sources")
        if isinstance(data, dict) and "sources" in data and (of_sources or location == ("data",)):
            self.sources = data.pop("sources")
            self.replaced.append("data.sources")
            self._note_missing_splits()
        elif isinstance(data, dict) and _is_in_a_list_of_tasks(location, data):
            self.tasks = data.pop("task")
            self.replaced.append("data.task")
            for key in OF_ONE_TASK:  # without the list they would seem to be in their place
                if data.pop(key, None) is not None:
                    self.faults.append(beside_a_list(key))
        elif location == ("name",):
            self.rest["name"] = UNNAMED
        elif (taken := take_out(self.rest, location)) and fault["type"] != "extra_forbidden":
            self.replaced.append(taken)

    def _note_missing_splits(self) -> None:
        """Pydantic does not look at them while anything else is wrong with the section."""
        if isinstance(self.sources, Mapping):
            missing = [split for split in SPLITS if split not in self.sources]
            lines = [f"data.sources.{split}: missing, and it has no default" for split in missing]
            told = any("sources lack" in line for line in self.faults)
            self.faults += [] if told else lines


def _disagreeing(fault: Any) -> RunConfig:
    """The config of a fault that is of no field alone."""
    disagreement = fault["ctx"]["error"]
    assert isinstance(disagreement, Disagreement), disagreement
    return disagreement.config


def _at_its_key(fault: Any) -> Any:
    """The fault without the name that pydantic gives to either form of `data.task`."""
    location = fault["loc"]
    if location[:2] == ("data", "task") and location[2:3] in (("name",), ("list",)):
        return {**fault, "loc": location[:2] + location[3:]}
    return fault


def _is_in_a_list_of_tasks(location: tuple[int | str, ...], data: Mapping[str, Any]) -> bool:
    return location[:2] == ("data", "task") and isinstance(data.get("task"), list)


def valid_tasks(raw: Any) -> tuple[Task, ...]:
    """The tasks of a list that are valid each for itself."""
    found = []
    for item in raw:
        try:
            found.append(Task.model_validate(item))
        except ValidationError:  # reported with the whole config
            continue
    return tuple(found)


def valid_sources(raw: Any) -> dict[Split, list[Source]]:
    """The sources that are valid each for itself, of the splits that have any."""
    found: dict[Split, list[Source]] = {}
    for split in SPLITS:
        items = raw.get(split) if isinstance(raw, Mapping) else None
        for item in items if isinstance(items, list) else []:
            try:
                source = Source.model_validate(item)
            except ValidationError:  # reported with the whole config
                continue
            found.setdefault(split, []).append(source)
    return found


def explain(error: Any) -> list[str]:
    """Lines of one pydantic error: key, found, expected."""
    location = [str(part) for part in error["loc"]]
    key = ".".join(location)
    if error["type"] == "value_error":
        lines = str(error["ctx"]["error"]).splitlines()
        return [f"{key}: {line}" if key else line for line in lines]
    if error["type"] == "extra_forbidden":
        fields = _fields_at(location[:-1])
        close = difflib.get_close_matches(location[-1], fields, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(fields)}"
        return [f"{key}: unknown key; {hint}"]
    if error["type"] == "missing":
        return [f"{key}: missing, and it has no default"]
    return [f"{key}: found {error['input']!r}; {error['msg'][0].lower()}{error['msg'][1:]}"]


def take_out(tree: dict[str, Any], location: tuple[int | str, ...]) -> str | None:
    """Remove the smallest entry of a mapping that holds the fault at `location`.

    Returns: its dotted key; None where there is nothing at that place.
    """
    at: Any = tree
    found: tuple[dict[Any, Any], Any, int] | None = None
    for depth, part in enumerate(location):
        if isinstance(at, dict):
            key = next((key for key in at if str(key) == str(part)), None)
            if key is None:
                break
            found, at = (at, key, depth), at[key]
        elif isinstance(at, list) and isinstance(part, int) and part < len(at):
            at = at[part]
        else:
            break
    if found is None:
        return None
    holder, key, depth = found
    del holder[key]
    return ".".join(str(part) for part in location[: depth + 1])


def _fields_at(location: list[str]) -> list[str]:
    """The keys of the section at a location; list positions and dict keys are stepped over."""
    model: type[BaseModel] = RunConfig
    for part in location:
        if part in model.model_fields:
            model = _model_in(model.model_fields[part].annotation) or model
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The config model inside `X | None`, `list[X]`, `dict[str, list[X]]` and the like."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_model_in(inner) for inner in get_args(annotation))
    return next((model for model in found if model is not None), None)
