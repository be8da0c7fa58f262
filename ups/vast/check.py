"""What of `ups validate` can be said from here of a run on a machine that is not there yet."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ups.config import read_config
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
    # Staged files and data made on demand are this machine's.
    there = {"data.root": f"{mount}/data/pdebench", "data.generate": None}
    parsed = read_config(config, {**overrides, **there})
    objects = Checks("data")
    if parsed.config.data.sources is None:
        objects.skip("files", f"the config wants them in {parsed.config.data.root} of the machine")
    elif not all(os.environ.get(key) for key in KEYS):
        objects.skip("objects", f"{' and '.join(KEYS)} are not set here")
    else:
        found, _ = validate_data(parsed)
        objects += [check for check in found if check.status != "skip"]
    return [*validate_config(parsed), *objects]
