"""The journal of a build that goes on, or was cut short: its plan, and the chunks that are written.

It is `.progress.jsonl` in the build's private directory. The first line, sealed, holds the plan and
the encoder; each further one a chunk's checksum, which is compared with the chunk itself.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from ups.errors import CacheDamaged
from ups.files import seal, unseal

NAME = ".progress.jsonl"

Job = tuple[int, int]
"""One chunk to encode: which file of the plan, and which chunk of it."""


def begin(directory: Path, plan: dict[str, Any]) -> None:
    """Write the first line."""
    (directory / NAME).write_bytes(seal(json.dumps(plan).encode()) + b"\n")


def line(job: Job, checksum: str) -> str:
    """What is noted of a chunk that is written."""
    return json.dumps([*job, checksum]) + "\n"


def read(directory: Path) -> tuple[dict[str, Any], dict[Job, str]]:
    """The plan, and the checksums of the chunks that are noted.

    A line that is damaged or was cut short is left out: its chunk is encoded again.

    Raises:
        CacheDamaged: there is no journal, or its plan is not what was written.
    """
    path = directory / NAME
    try:
        first, *lines = path.read_bytes().split(b"\n")
        plan = json.loads(unseal(first))
        if not isinstance(plan, dict):
            raise ValueError(f"found {type(plan).__name__}, expected names with values")
    except (OSError, ValueError) as error:
        raise CacheDamaged(f"{path}: unreadable plan of a build ({error})") from error
    noted: dict[Job, str] = {}
    for text in lines[:-1]:
        with contextlib.suppress(ValueError, TypeError):
            index, chunk, checksum = json.loads(text)
            noted[index, chunk] = checksum
    return plan, noted
