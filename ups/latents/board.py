"""Memory that the processes of a machine share: what has come of latents that ranks train on."""

from __future__ import annotations

import mmap
import os
import pickle
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ups.config import Split
from ups.data.sources import Staged
from ups.latents.datasets import Rows

SAID_BYTES = 64 << 20  # for an error, or for the key fields; a page is taken when it is written to
NUM_NUMBERS = 5
STATUS, SAID, NUM_STEPS, HALTED, WISHED = range(NUM_NUMBERS)
COMING, SETTLED, FAILED = range(3)


class SharedMemory:
    """Memory without a name, which goes with the last process that has it.

    Not of /dev/shm, of which a container has 64 MB by default.
    """

    def __init__(self, handle: int, num_bytes: int) -> None:
        self._handle = handle
        weakref.finalize(self, os.close, handle)  # the map stays
        self.map = mmap.mmap(handle, num_bytes)

    @classmethod
    def make(cls, name: str, num_bytes: int) -> Self:
        """New and empty."""
        handle = os.memfd_create(name)
        os.ftruncate(handle, num_bytes)
        return cls(handle, num_bytes)

    @classmethod
    def open(cls, path: str, num_bytes: int) -> Self:
        """That of another process, which is still there."""
        return cls(os.open(path, os.O_RDWR), num_bytes)

    @property
    def path(self) -> str:
        """Where other processes of this user open it, while this one is there."""
        return f"/proc/{os.getpid()}/fd/{self._handle}"


class Board:
    """Which trajectories of train are there, how it ended, and how far training may go.

    The process that streams writes the first two, rank 0 the last; all may wish to stop.

    Attributes:
        is_there: (N,).
    """

    def __init__(self, memory: SharedMemory, num_train: int) -> None:
        self.memory = memory
        self._numbers: NDArray[np.int64] = np.frombuffer(memory.map, np.int64, NUM_NUMBERS)
        first = self._numbers.nbytes
        self._said: NDArray[np.uint8] = np.frombuffer(memory.map, np.uint8, SAID_BYTES, first)
        self.is_there: NDArray[np.bool_] = np.frombuffer(
            memory.map, np.bool_, num_train, first + SAID_BYTES
        )

    @staticmethod
    def num_bytes(num_train: int) -> int:
        """What it takes."""
        return NUM_NUMBERS * 8 + SAID_BYTES + num_train

    @classmethod
    def make(cls, num_train: int) -> Self:
        return cls(SharedMemory.make("ups-board", cls.num_bytes(num_train)), num_train)

    @classmethod
    def open(cls, path: str, num_train: int) -> Self:
        return cls(SharedMemory.open(path, cls.num_bytes(num_train)), num_train)

    @property
    def status(self) -> int:
        """COMING, SETTLED or FAILED."""
        return int(self._numbers[STATUS])

    def end(self, status: int, said: object) -> None:
        """Nothing more comes.

        Args:
            said: what the others are to know of it.
        """
        data = np.frombuffer(pickle.dumps(said), np.uint8)
        self._said[: len(data)] = data
        self._numbers[SAID] = len(data)
        self._numbers[STATUS] = status

    def said(self) -> Any:
        """What was said in the end."""
        return pickle.loads(self._said[: self._numbers[SAID]].tobytes())

    @property
    def num_steps(self) -> int:
        """How often rank 0 has let the ranks go on."""
        return int(self._numbers[NUM_STEPS])

    def let_go(self) -> None:
        """Let the ranks take another step."""
        self._numbers[NUM_STEPS] += 1

    @property
    def is_halted(self) -> bool:
        """Whether rank 0 takes no further step."""
        return bool(self._numbers[HALTED])

    def halt(self) -> None:
        """Have the others know that rank 0 takes no further step."""
        self._numbers[HALTED] = 1

    @property
    def is_wished(self) -> bool:
        """Whether a rank wants all to stop."""
        return bool(self._numbers[WISHED])

    def wish(self) -> None:
        """Have rank 0 know that this one wants to stop."""
        self._numbers[WISHED] = 1


@dataclass(frozen=True, slots=True)
class SharedLatents:
    """Where a rank finds latents that another process streams, and what they are.

    Attributes:
        board: the path of the board.
        tensors: split → the path of its tensor, of all trajectories in `rows`.
        encoders: problem → the manifest of its encoder.
        key_fields, fetches: see `Latents`.
        sources: what they are made of.
        num_bytes: as stored.
    """

    board: str
    tensors: Mapping[Split, str]
    rows: Mapping[Split, Sequence[Rows]]
    encoders: Mapping[str, Mapping[str, Any]]
    key_fields: Mapping[str, dict[str, Any]]
    fetches: Mapping[str, list[str]]
    sources: Sequence[Staged]
    num_bytes: int
