"""Calls of `vastai`, the official tool, each argument as it is: no shell reads them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ups.errors import VastError

TIMEOUT_S = 120.0
NO_KEY = (
    "vastai has no valid API key: make one at https://cloud.vast.ai/manage-keys/, then "
    "`vastai set api-key KEY`, or set VAST_API_KEY"
)


def find_tool() -> str:
    """`vastai` on the PATH, else beside this Python.

    Raises:
        VastError: it is in neither place.
    """
    beside = shutil.which("vastai", path=str(Path(sys.executable).parent))
    if found := shutil.which("vastai") or beside:
        return found
    raise VastError(
        "the command `vastai` is not here: install the extra `vast` with `make vast`, or "
        "`uv pip install -c constraints.txt -e '.[vast]'`"
    )


def ask(*arguments: str) -> Any:
    """What a command with `--raw` answers, from JSON.

    Raises:
        VastError: it fails, which it says on standard error, or answers something else.
    """
    done = _call([*arguments, "--raw"])
    try:
        return json.loads(done.stdout)
    except ValueError:
        raise VastError(_fault(arguments, done.stderr or done.stdout)) from None


def run(*arguments: str, accepted: str = "", secrets: Sequence[str] = ()) -> None:
    """Run a command that answers in words; its exit code is 0 in any case.

    Args:
        accepted: what it says when it is done; where that is not known, it must not say `Failed`.
        secrets: values that no message may show.
    Raises:
        VastError: it fails.
    """
    done = _call(arguments)
    said = done.stdout + done.stderr
    if done.returncode != 0 or accepted not in said or (not accepted and "Failed" in said):
        raise VastError(_fault(arguments, said, secrets))


def _call(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "VASTAI_NO_UPDATE_CHECK": "1"}
    try:
        return subprocess.run(
            [find_tool(), *arguments],
            env=env,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        what = " ".join(arguments[:2])
        raise VastError(f"`vastai {what}` does not answer in {TIMEOUT_S:.0f} s") from None


def _fault(arguments: Sequence[str], said: str, secrets: Sequence[str] = ()) -> str:
    for secret in secrets:
        said = said.replace(secret, "*****")
    lines = said.strip().splitlines() or ["nothing"]
    text = lines[-1]
    with contextlib.suppress(ValueError, TypeError, KeyError):  # with --raw it is JSON
        text = f"{json.loads(text)['status_code']}: {json.loads(text)['msg']}"
    if re.search(r"\b401\b|No API key", said):
        return f"{NO_KEY} (it says: {text})"
    return f"`vastai {' '.join(arguments[:2])}` failed; it says: {text}"
