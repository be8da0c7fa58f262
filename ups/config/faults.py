"""What pydantic finds wrong with a config, in words that name the YAML key."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ups.config.models import RunConfig
from ups.config.operators import OPERATORS
from ups.config.text import shortened

MOST_NAMED = 3
WORDS = ("literal_error", "string_type", "invalid_key")  # where a word is wanted


def explain(error: ValidationError) -> tuple[str, ...]:
    """All faults, a line for each: its whole dotted key, what was found, what is expected."""
    return tuple(line for fault in error.errors() for line in _lines(fault))


def _lines(fault: ErrorDetails) -> list[str]:
    location = list(fault["loc"])
    if location[:2] == ["data", "task"]:
        del location[2:3]  # pydantic's name for either form of it: `name`, `list`
    named = [part for i, part in enumerate(location) if not (i == 1 and part in OPERATORS)]
    key, kind = ".".join(map(str, named)), fault["type"]
    if kind == "union_tag_invalid" and key == "operator":
        found, expected = shortened(fault["ctx"]["tag"]), ", ".join(OPERATORS)
        return [f"operator.kind: found {found}; expected {expected}"]
    if kind == "value_error":
        lines = str(fault["ctx"]["error"]).splitlines()
        return [f"{key}: {line}" if key else line for line in lines]
    if kind == "extra_forbidden":
        return [f"{key}: unknown key; {_hint(location, '.'.join(map(str, named[:-1])))}"]
    if kind == "missing":
        return [f"{key}: missing, and it has no default"]
    found, expected = shortened(fault["input"]), fault["msg"][0].lower() + fault["msg"][1:]
    if isinstance(fault["input"], bool) and kind in WORDS:
        expected += ", and YAML reads on, off, yes and no as True and False: quote the word"
    return [f"{key}: found {found}; {expected}"]


def _hint(location: list[int | str], section: str) -> str:
    """What may have been meant: a key of the same section that is written alike, or another's."""
    known, key, everywhere = _keys_beside(location), str(location[-1]), list(leaves(RunConfig))
    meant = [whole for whole in everywhere if whole.replace(".", "_") == key]  # as the flow has it
    if not meant and (close := difflib.get_close_matches(key, known, n=1)):
        meant = [f"{section}.{close[0]}" if section else close[0]]
    meant = meant or [whole for whole in everywhere if whole.rpartition(".")[2] == key]
    if meant:
        return f"did you mean {' or '.join(meant[:MOST_NAMED])}?"
    return f"known keys: {', '.join(known)}"


def leaves(model: type[BaseModel], section: str = "") -> Iterator[str]:
    """The whole keys of a model's values: `latent.dim` and the like."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from leaves(kind, f"{section}{name}.")
        else:
            yield f"{section}{name}"


def _keys_beside(location: list[int | str]) -> list[str]:
    """The keys of the section of a key; list positions and dict keys are stepped over."""
    model: type[BaseModel] = RunConfig
    for key in location[:-1]:
        if key in OPERATORS:
            model = OPERATORS[key]
        elif field := model.model_fields.get(str(key)):
            model = _model_in(field.annotation) or model
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The config model inside `X | None`, `list[X]`, `dict[str, list[X]]` and the like."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_model_in(inner) for inner in get_args(annotation))
    return next((model for model in found if model is not None), None)
