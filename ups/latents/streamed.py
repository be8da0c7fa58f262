"""Latents that are still on their way: room for them, in this process or for all ranks of a run."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ups.background import Background
from ups.config import RunConfig, Split
from ups.data.sources import Staged
from ups.errors import CannotStream, portable
from ups.latents.arrival import Arrival
from ups.latents.board import FAILED, SETTLED, Board, SharedLatents, SharedMemory
from ups.latents.datasets import PreloadedCacheDataset, Rows
from ups.latents.encode import PatchEncoder
from ups.latents.loader import Latents, assemble, resident, shape_of
from ups.latents.partly_resident import keep_part
from ups.latents.tiers import Tier, choose_tier, resident_mb
from ups.machine.devices import own_stream, training_device
from ups.machine.memory import check_sufficient_ram
from ups.machine.ranks import num_ranks

log = logging.getLogger(__name__)

LOOK_S = 0.002  # between two looks at the board
STEP_S = 0.0005  # between two looks whether rank 0 goes on
PARTING_S = 2.0  # in which rank 0 says whether it goes on, where a rank is asked to stop


class Room:
    """Room in memory for latents of which nothing is there yet.

    Args:
        num_bytes: of them, as stored.
        device: that training runs on.
    Raises:
        CannotStream: there is none.
    """

    def __init__(self, config: RunConfig, num_bytes: int, device: str) -> None:
        self._config, self._num_bytes, self._device = config, num_bytes, device
        self._for_ranks = num_ranks(config) > 1
        if self._for_ranks:  # each of which has a copy on its own GPU, if that has room
            has_room = check_sufficient_ram(resident_mb(config, num_bytes))
            self._tier = Tier("ram" if has_room else "disk")
        else:
            self._tier = choose_tier(config, num_bytes, device)
        if self._tier.name == "disk":  # the load says the reasons
            raise CannotStream("the latents have no room in memory")
        for reason in self._tier.stepped_down:
            log.warning("%s", reason)

    def make(
        self,
        rows: Mapping[Split, Sequence[Rows]],
        encoders: dict[str, PatchEncoder],
        fields: dict[str, dict[str, Any]],
        fetches: dict[str, list[str]],
        started: float,
        sources: Sequence[Staged] = (),
    ) -> tuple[Latents, Arrival, dict[Split, Tensor]]:
        """What training reads, what it is told by, and the tensors to fill, (N, T', K, D) each.

        Args:
            rows: what is in each split, as `check_alike` lets it pass.
            encoders, fields, fetches: problem → what `Latents` have of it.
            started: time.monotonic() at which the load began.
            sources: what they are read of.
        """
        config, tier = self._config, self._tier
        tensors: dict[Split, Tensor] = {}
        memory: dict[Split, SharedMemory] = {}

        def open_split(split: Split, condition_NC: Tensor) -> PreloadedCacheDataset:
            if self._for_ranks:
                shape, dtype = shape_of(config, rows[split])
                memory[split] = SharedMemory.make(f"ups-{split}", math.prod(shape) * dtype.itemsize)
                tensors[split] = _in_map(config, rows[split], memory[split])
                return PreloadedCacheDataset(tensors[split], condition_NC, "cpu")
            tensors[split] = resident(config, rows[split], on_gpu=tier.name == "gpu")
            return PreloadedCacheDataset(tensors[split], condition_NC, self._device)

        latents = assemble(
            config, rows, open_split, encoders, fields, tier.name, started, self._num_bytes
        )
        latents.train = keep_part(config, latents.train, tier.kept_mb, self._device)
        latents.fetches = fetches
        if not self._for_ranks:
            latents.arrival = arrival = Arrival(len(latents.train), sources)
            return latents, arrival, tensors
        board = Board.make(len(latents.train))
        latents.arrival = arrival = HostArrival(board, sources, fields)
        latents.shared = SharedLatents(
            board.memory.path,
            {split: of_split.path for split, of_split in memory.items()},
            rows,
            {name: encoder.to_manifest() for name, encoder in encoders.items()},
            dict(fields),
            fetches,
            sources,
            self._num_bytes,
        )
        latents.holds.callback(memory.clear)  # until then others can open it
        return latents, arrival, tensors


def open_shared(config: RunConfig, shared: SharedLatents, *, leads: bool) -> Latents:
    """The latents of `make_room` in a rank; on a GPU it copies there what comes.

    Args:
        leads: of rank 0, whose step is the others' too.
    """
    started, device = time.monotonic(), training_device(config)
    rows = shared.rows
    on_gpu = device == "cuda" and choose_tier(config, shared.num_bytes, device).name == "gpu"
    here: dict[Split, Tensor] = {}
    host: dict[Split, Tensor] = {}

    def open_split(split: Split, condition_NC: Tensor) -> PreloadedCacheDataset:
        shape, dtype = shape_of(config, rows[split])
        memory = SharedMemory.open(shared.tensors[split], math.prod(shape) * dtype.itemsize)
        host[split] = here[split] = _in_map(config, rows[split], memory)
        if on_gpu:
            here[split] = resident(config, rows[split], on_gpu=True)
        return PreloadedCacheDataset(here[split], condition_NC, device)

    def bring(split: Split, first: int, end: int) -> None:
        if on_gpu:
            here[split][first:end].copy_(host[split][first:end])
            torch.cuda.current_stream().synchronize()

    encoders = {name: PatchEncoder.from_manifest(m) for name, m in shared.encoders.items()}
    fields = dict(shared.key_fields)
    tier = "gpu" if on_gpu else "ram"
    latents = assemble(config, rows, open_split, encoders, fields, tier, started, shared.num_bytes)
    latents.fetches = dict(shared.fetches)
    board = Board.open(shared.board, len(latents.train))
    arrival = RankArrival(board, shared.sources, leads=leads)
    latents.arrival = arrival

    def follow() -> None:
        try:
            with own_stream(device):
                arrival.follow(bring, len(here["val"]), fields)
        except BaseException as error:  # whatever it is: training waits for it
            arrival.fail(error)
            raise

    Background(follow, "follow what comes")
    return latents


def _in_map(config: RunConfig, rows: Sequence[Rows], memory: SharedMemory) -> Tensor:
    shape, dtype = shape_of(config, rows)
    return torch.frombuffer(memory.map, dtype=dtype).view(shape)


class HostArrival(Arrival):
    """The arrival in the process that streams, which writes it on the ranks' board.

    Args:
        key_fields: of the latents, as they stand in the end.
    """

    def __init__(
        self, board: Board, sources: Sequence[Staged], key_fields: Mapping[str, dict[str, Any]]
    ) -> None:
        super().__init__(len(board.is_there), sources)
        self._board, self._key_fields = board, key_fields

    def note(self, first: int, end: int) -> None:
        super().note(first, end)
        self._board.is_there[first:end] = True

    def settle(self) -> None:
        super().settle()
        self._board.end(SETTLED, dict(self._key_fields))

    def fail(self, error: BaseException) -> None:
        super().fail(error)
        self._board.end(FAILED, portable(error, "the streaming start"))


class RankArrival(Arrival):
    """The arrival in a rank: rank 0 waits for what comes, and the others for rank 0.

    So all go on, or stop, before the same step.
    """

    def __init__(self, board: Board, sources: Sequence[Staged], *, leads: bool) -> None:
        super().__init__(len(board.is_there), sources)
        self._board, self._leads = board, leads
        self._num_steps = 0
        self._is_through = False

    def follow(
        self,
        bring: Callable[[Split, int, int], None],
        num_val: int,
        key_fields: dict[str, dict[str, Any]],
    ) -> None:
        """Note what comes, until all is there or it has failed.

        Args:
            bring: has trajectories [first, end) of a split be where training reads them.
            key_fields: of the latents; they become what they are in the end.
        """
        known = np.zeros_like(self._board.is_there)
        while True:
            status = self._board.status  # before the rows: all of them are there by then
            new = self._board.is_there & ~known
            edges = np.flatnonzero(np.diff(np.r_[False, new, False].astype(np.int8)))
            for first, end in edges.reshape(-1, 2).tolist():
                bring("train", first, end)
                self.note(first, end)
            known |= new
            if status == FAILED:
                self.fail(self._board.said())
                return
            if status == SETTLED:
                bring("val", 0, num_val)
                key_fields.update(self._board.said())
                self.settle()
                return
            time.sleep(LOOK_S)

    def wait_for(self, rows: NDArray[np.int64], is_stopped: Callable[[], bool]) -> bool:
        if self._leads:
            return self._led(super().wait_for(rows, self._or_wished(is_stopped)))
        return self._goes_on(is_stopped) and super().wait_for(rows, lambda: False)

    def wait_settled(self, is_stopped: Callable[[], bool]) -> bool:
        if not self._is_through:
            if self._leads:
                has_come = super().wait_settled(self._or_wished(is_stopped))
                self._is_through = self._led(has_come)
            else:
                self._is_through = self._goes_on(is_stopped) and super().wait_settled(lambda: False)
        return self._is_through

    def stops(self, is_stopped: bool) -> bool:
        if not self._leads:
            return True
        if is_stopped or self._board.is_wished:
            self._board.halt()
            return True
        return False

    def _or_wished(self, is_stopped: Callable[[], bool]) -> Callable[[], bool]:
        return lambda: is_stopped() or self._board.is_wished

    def _led(self, has_come: bool) -> bool:
        if has_come:
            self._board.let_go()
        return has_come

    def _goes_on(self, is_stopped: Callable[[], bool]) -> bool:
        """Wait until rank 0 goes on; whether it does. One that is gone says nothing any more."""
        self._num_steps += 1
        give_up_at = None
        while self._board.num_steps < self._num_steps:
            self.check()
            if self._board.is_halted:
                return False
            if is_stopped():
                self._board.wish()
                give_up_at = give_up_at or time.monotonic() + PARTING_S
                if time.monotonic() > give_up_at:
                    return False
            time.sleep(STEP_S)
        return True
