"""What of `ups validate` can be said from here of a run on a machine that is not there yet."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ups.config import Parsed, read_config
from ups.validate.check import Check, Checks
from ups.validate.config import validate_config
from ups.validate.data import validate_data

KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")  # what `setup-env` sends to the machine


def check(config: str, overrides: Mapping[str, Any], mount: str) -> list[Check]:
    """The config, and its objects in the store; what is of the machine itself is left out.

    Args:
        overrides: dotted, as the run gets them.
        mount: the machine's folder for data.
    """
    there = {"data.root": f"{mount}/data/pdebench"}  # files staged here are not there
    parsed = read_config(config, {**overrides, **there})
    objects = Checks("data")
    if all(task.sources is None for task in parsed.config.data.tasks):
        objects.skip("files", f"the config wants them in {parsed.config.data.root} of the machine")
    elif not all(os.environ.get(key) for key in KEYS):
        objects.skip("objects", f"{' and '.join(KEYS)} are not set here")
    else:
        found, _ = validate_data(_without_generators(parsed))
        objects += [check for check in found if check.status != "skip"]
    return [*validate_config(parsed), *objects]


def _without_generators(parsed: Parsed) -> Parsed:
    """Only `ups run` generates what the store lacks, and a rented machine does not."""
    config = parsed.config
    tasks = tuple(task.model_copy(update={"generate": None}) for task in config.data.tasks)
    data = {"task": tasks} if isinstance(config.data.task, tuple) else {"generate": None}
    return replace(
        parsed,
        config=config.model_copy(update={"data": config.data.model_copy(update=data)}),
    )
