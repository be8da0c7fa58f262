"""A process of its own for what is measured: JSON lines in, JSON lines out.

    PYTHON -m speed.worker MODULE

The peers run so in their own environment, and whatever needs a fresh process (memory) or another
network does. The module is imported first, and its import time reported apart. Only the standard
library is imported here.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

PROJECT_DIR = Path(__file__).resolve().parents[1]


class WorkerError(RuntimeError):
    """The other process raised, or ended; what it said, in one line."""


class Worker(AbstractContextManager["Worker"]):
    """Calls functions of a module in a process of its own, by JSON over its pipes.

    Args:
        prefix: put before the command, e.g. to run it in a network namespace.
    Attributes:
        import_s: seconds that importing the module took.
    """

    def __init__(
        self,
        module: str,
        *,
        python: Path | None = None,
        prefix: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._process = subprocess.Popen(
            [*prefix, str(python or sys.executable), "-m", "speed.worker", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=PROJECT_DIR,
            env={**os.environ, **(env or {})},
            text=True,
        )
        try:
            self.import_s: float = self._receive()
        except WorkerError:
            self.close()
            raise

    def call(self, function: str, **arguments: Any) -> Any:
        """Call a function of the module.

        Raises:
            WorkerError: it raised, or the process ended.
        """
        assert self._process.stdin is not None
        line = json.dumps({"function": function, "arguments": arguments})
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        return self._receive()

    def close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _receive(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer["result"]

    def _ended(self) -> WorkerError:
        assert self._process.stderr is not None
        code, said = self._process.wait(), self._process.stderr.read().strip()
        return WorkerError(f"ended with exit code {code}: {said[-300:]}")


def describe(error: BaseException) -> str:
    """One line of an error."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)  # what libraries print is not an answer

    def answer(**record: Any) -> None:
        answers.write(json.dumps(record) + "\n")

    started = time.perf_counter()
    try:
        module = importlib.import_module(sys.argv[1])
    except BaseException as error:  # noqa: BLE001 (the other side raises it)
        answer(error=describe(error))
        return
    answer(result=time.perf_counter() - started)
    os.dup2(silent, 2)  # nobody reads it from here on, and a full pipe would block
    for line in sys.stdin:
        request = json.loads(line)
        try:
            result = getattr(module, request["function"])(**request["arguments"])
        except Exception as error:  # noqa: BLE001 (the other side raises it)
            answer(error=describe(error))
        else:
            answer(result=result)


if __name__ == "__main__":
    main()
