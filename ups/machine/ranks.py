"""How many processes train together, and which of them this one is, without torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ups.config import RunConfig
from ups.errors import RankError

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
DEVICES = Path("/dev")
VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class Place:
    """Which of the processes that train together this one is.

    Attributes:
        local_rank: which of those of this machine.
    """

    rank: int
    world: int
    local_rank: int

    @classmethod
    def of_environment(cls) -> Self | None:
        """What torchrun, Slurm's script or Kubernetes says; None of a process on its own.

        Raises:
            RankError: a variable is missing, or no number that can be.
        """
        if os.environ.get("WORLD_SIZE", "1").strip() in ("", "1"):
            return None
        given = {name: os.environ.get(name, "") for name in NAMES}
        if missing := [name for name, value in given.items() if not value]:
            raise RankError(
                f"WORLD_SIZE is {given['WORLD_SIZE']}, and {', '.join(missing)} not set: set all "
                f"of {', '.join(NAMES)}, as torchrun does, or none of them"
            )
        numbers = {name: given[name] for name in NAMES if name != "MASTER_ADDR"}
        if wrong := [f"{name}={value}" for name, value in numbers.items() if not value.isdigit()]:
            raise RankError(f"found {', '.join(wrong)}, expected whole numbers: correct them")
        place = cls(*(int(given[name]) for name in NAMES[:3]))
        if not place.local_rank <= place.rank < place.world:
            raise RankError(
                f"found RANK={place.rank}, WORLD_SIZE={place.world}, "
                f"LOCAL_RANK={place.local_rank}; expected LOCAL_RANK <= RANK < WORLD_SIZE: "
                "correct them"
            )
        return place


def num_ranks(config: RunConfig) -> int:
    """Processes that train together: as the environment says, else as the config does."""
    place = Place.of_environment()
    return local_ranks(config) if place is None else place.world


def ranks_to_start(config: RunConfig) -> int:
    """Processes that train for this one; 1, itself, also where a launcher has started others."""
    return local_ranks(config) if Place.of_environment() is None else 1


def local_ranks(config: RunConfig) -> int:
    """Processes that a run starts on this machine; auto: one for each GPU, as far as a batch goes.

    CUDA is not touched, so that they may be forked.
    """
    wanted = config.training.ranks
    if wanted != "auto":
        return wanted
    if config.training.device == "cpu":
        return 1
    return max(1, min(num_gpus(), config.training.items_per_step))


def why_ranks_wait(config: RunConfig) -> str:
    """Why ranks begin once all latents are there; empty where they do not, or there are none."""
    if Place.of_environment() is not None:
        return "ranks that a launcher has started begin once all latents are there"
    if config.training.shard and local_ranks(config) > 1:
        return "with training.shard ranks begin once all latents are there"
    return ""


def num_gpus() -> int:
    """GPUs that a process started here may use, by their device files and CUDA's variable."""
    files = list(DEVICES.glob("nvidia[0-9]*"))
    if not files:
        return 0
    visible = os.environ.get(VISIBLE)
    return len(files) if visible is None else len(_listed(visible))


def take_gpu(local_rank: int) -> None:
    """Have CUDA show this process one GPU, the one of its rank; before CUDA is touched.

    So everything that says `cuda` means it, in whatever thread. Where the launcher has chosen
    one already, as Slurm does, it stays.

    Raises:
        RankError: there are fewer.
    """
    visible = os.environ.get(VISIBLE)
    found = [str(i) for i in range(num_gpus())] if visible is None else _listed(visible)
    if not found or (len(found) == 1 and (local_rank == 0 or visible is not None)):
        return
    if local_rank >= len(found):
        raise RankError(
            f"rank {local_rank} of this machine, counted from 0, wants a GPU of its own, and there "
            f"are {len(found)}: start fewer ranks here"
        )
    os.environ[VISIBLE] = found[local_rank]


def _listed(visible: str) -> list[str]:
    """The GPUs of the variable; CUDA stops at the first that is none."""
    found: list[str] = []
    for name in visible.split(","):
        if not name.strip() or name.strip() == "-1":
            break
        found.append(name.strip())
    return found
