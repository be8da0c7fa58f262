"""The processes that train together: how they meet, and what they say to each other.

Two ways: a store, which rank 0 or its launcher keeps, for words that may be waited for; and a group
that sums tensors, gloo's between CPUs and NCCL's between GPUs. torch.distributed is imported here,
and this by nobody who trains alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import socket
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Self

import psutil
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from ups.background import Background
from ups.config import RunConfig
from ups.errors import RankError, UpsError
from ups.machine.devices import training_device
from ups.machine.host import commit
from ups.machine.ranks import Place, take_gpu

POLL_S, RETRY_S = 0.02, 0.2
ECHO_S = 1.0  # in which whoever really failed is found
LEAVE_S = 10.0  # for others that have not come to the end; they would fail by themselves
COLLECTIVE_S = 600.0  # that a rank waits for the others in a step
FAILED, LEFT = "failed", "left"
OF_MACHINE: dict[str, Any] = {  # what may differ between machines that train the same
    "runs_dir": True,
    "data": {"root"},
    "training": {"latent_cache_dir", "num_workers", "pin_memory", "ranks", "rendezvous_s"},
    "features": True,
    "logging": True,
    "startup": True,
}


class Ranks:
    """This process among those that train together.

    Attributes:
        rank, world: which of how many it is.
        machine: names the machine, on which ranks share what is prepared.
    """

    def __init__(self, place: Place, store: Store, device: str, wait_s: float) -> None:
        self.rank, self.world, self.machine = place.rank, place.world, platform.node()
        self._store, self._device, self._wait_s = store, device, wait_s
        self._num_agreed = 0

    @classmethod
    def join(cls, config: RunConfig, place: Place) -> Self:
        """Meet the others; all of them have the same config and the same commit.

        Raises:
            RankError: the master cannot be reached, ranks are missing, or some differ.
        """
        if config.training.device != "cpu":
            take_gpu(place.local_rank)
        device = training_device(config)
        items, wait_s = config.training.items_per_step, config.training.rendezvous_s
        if place.world > items:
            raise RankError(
                f"found {place.world} ranks, expected no more than the {items} items of a step "
                "(training.batch_size or pairs_per_step × accumulation_steps), which they share"
            )
        ranks = cls(place, _open_store(place, wait_s), device, wait_s)
        with ranks.failing_together():
            ranks.agree("config", digest(config))
            ranks.agree("commit", f"{commit()}, torch {torch.__version__}")
            ranks.agree("device", device)
            ranks._make_group()
        return ranks

    def _make_group(self) -> None:
        address, is_gloo = os.environ["MASTER_ADDR"], self._device == "cpu"
        if is_gloo and (interface := _interface_to(address)) is not None:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)

        def make() -> None:
            dist.init_process_group(
                "gloo" if is_gloo else "nccl",
                store=PrefixStore("group", self._store),
                rank=self.rank,
                world_size=self.world,
                timeout=timedelta(seconds=COLLECTIVE_S),
            )
            self.meet()

        making = Background(make, "make the group of ranks")
        if not making.is_done(self._wait_s):
            name = "GLOO_SOCKET_IFNAME" if is_gloo else "NCCL_SOCKET_IFNAME"
            raise RankError(
                f"rank {self.rank} reached the master, but not all other ranks within "
                f"{self._wait_s:g} s: have the machines reach each other on all ports, and name "
                f"the interface between them in {name} (now {os.environ.get(name, 'not set')})"
            )
        with self._explained():
            making.result()

    def sum(self, *tensors: Tensor) -> None:
        """Make each of them the sum over all ranks, in place; a captured graph may hold it."""
        with self._explained():
            for tensor in tensors:
                dist.all_reduce(tensor)

    def meet(self) -> None:
        """Return once all ranks have come here."""
        word = torch.zeros(1, device=self._device)
        self.sum(word)
        word.cpu()

    def take_from_first(self, *tensors: Tensor) -> None:
        """Make each of them what it is on rank 0, in place."""
        with self._explained():
            for tensor in tensors:
                dist.broadcast(torch.view_as_real(tensor) if tensor.is_complex() else tensor, 0)

    def tell(self, what: str, text: str = "") -> None:
        """Say something that others may wait for."""
        with self._explained():
            self._store.set(what, text)

    def hear(self, what: str, wait_s: float | None = None) -> str:
        """Wait for it.

        Args:
            wait_s: seconds; default: as long as it takes.
        Raises:
            RankError: a rank failed meanwhile, or nobody said it in time.
        """
        deadline = None if wait_s is None else time.monotonic() + wait_s
        with self._explained():
            while not self._store.check([what]):
                if self._store.check([FAILED]):
                    raise _echo(self._store.get(FAILED).decode())
                if deadline is not None and time.monotonic() > deadline:
                    raise RankError(
                        f"rank 0 has not said {what!r} within {wait_s:g} s: see what it says, and "
                        "start all ranks again"
                    )
                time.sleep(POLL_S)
            return str(self._store.get(what).decode())

    def agree(self, what: str, value: str, wait_s: float | None = None) -> None:
        """Refuse, on all ranks alike, to go on with ranks that have something else there.

        Args:
            wait_s: for the others; default: as for them to join.
        Raises:
            RankError: some have, or did not come.
        """
        wait_s = self._wait_s if wait_s is None else wait_s
        self._num_agreed += 1
        key = f"{self._num_agreed}/{what}"
        self.tell(f"{key}/{self.rank}", json.dumps([value, platform.node()]))
        if self.rank == 0:
            fault = self._differing(key, what, value, wait_s)
            self.tell(key, fault)
        else:
            fault = self.hear(key, wait_s + ECHO_S)
        if fault:
            raise RankError(fault)

    def _differing(self, key: str, what: str, value: str, wait_s: float) -> str:
        """What is wrong with what the others have there; empty where nothing is."""
        deadline, missing = time.monotonic() + wait_s, list(range(1, self.world))
        with self._explained():
            while missing and time.monotonic() < deadline:
                if self._store.check([FAILED]):
                    raise _echo(self._store.get(FAILED).decode())
                missing = [r for r in missing if not self._store.check([f"{key}/{r}"])]
                time.sleep(POLL_S if missing else 0)
            if missing:
                return (
                    f"of {self.world} ranks {', '.join(map(str, missing))} did not come within "
                    f"{wait_s:g} s: see what they say, or raise training.rendezvous_s"
                )
            for rank in range(1, self.world):
                other, host = json.loads(self._store.get(f"{key}/{rank}"))
                if other != value:
                    return (
                        f"rank {rank} on {host} has {what} {other}, rank 0 on {platform.node()} "
                        f"has {value}: start all ranks with the same {what}"
                    )
        return ""

    @contextlib.contextmanager
    def failing_together(self) -> Iterator[None]:
        """Tell the others, who may be waiting, what this rank fails with."""
        try:
            yield
        except BaseException as error:  # a stop, too: nobody is to wait for this rank; raised again
            if not getattr(error, "is_echo", False):
                with contextlib.suppress(RuntimeError, RankError):  # nobody is there to be told
                    self.tell(FAILED, f"rank {self.rank}: {error or type(error).__name__}")
            raise

    def leave(self) -> None:
        """Part from the others, once all have come here.

        They meet at the store: where one closes its connections, gloo may take that for a fault of
        the sum that another has not read yet.
        """
        deadline = time.monotonic() + LEAVE_S
        with contextlib.suppress(RuntimeError):  # rank 0 has left with the store: all had come
            self._store.add(LEFT, 1)
            while self._store.add(LEFT, 0) < self.world and time.monotonic() < deadline:
                if self._store.check([FAILED]):
                    raise _echo(self._store.get(FAILED).decode())
                time.sleep(POLL_S)
        dist.destroy_process_group()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Say in a line what torch says of others that are gone."""
        try:
            yield
        except UpsError:
            raise
        except RuntimeError as error:
            reason = f"another rank ended, or cannot be reached any more ({_first_line(error)})"
            with contextlib.suppress(RuntimeError):
                deadline = time.monotonic() + ECHO_S
                while time.monotonic() < deadline:
                    if self._store.check([FAILED]):
                        raise _echo(self._store.get(FAILED).decode()) from error
                    time.sleep(POLL_S)
            raise _echo(reason) from error


def _echo(reason: str) -> RankError:
    error = RankError(f"{reason}: see what that rank says; a retry resumes from the checkpoint")
    error.is_echo = True
    return error


def digest(config: RunConfig) -> str:
    """Of what has to be the same in all ranks' configs."""
    text = config.model_dump_json(exclude=OF_MACHINE)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _open_store(place: Place, wait_s: float) -> Store:
    """The store of this start, at the master's address.

    Raises:
        RankError: it cannot be reached.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    by_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    keeps = place.rank == 0 and not by_launcher
    try:
        # torch says what it fails with in twenty lines of C++, so that is found out before
        (_check_free if keeps else _check_reached)(address, port, wait_s)
        store = TCPStore(
            address,
            port,
            place.world,
            is_master=keeps,
            timeout=timedelta(seconds=wait_s),
            wait_for_workers=False,
        )
    except (OSError, RuntimeError, ValueError) as error:
        what = "keep the ranks' store" if keeps else f"reach rank 0 within {wait_s:g} s"
        raise RankError(
            f"rank {place.rank} could not {what} at MASTER_ADDR={address} MASTER_PORT={port} "
            f"({_first_line(error)}): name an address of rank 0's machine and a free port that its "
            "firewall lets through, and see that rank 0 runs"
        ) from error
    return PrefixStore(f"ups/{attempt}", store)


def _check_free(_address: str, port: int, _wait_s: float) -> None:
    """Raises OSError where another program listens on the port."""
    with socket.socket(socket.AF_INET6 if socket.has_ipv6 else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("", port))


def _check_reached(address: str, port: int, wait_s: float) -> None:
    """Return once somebody listens there; raises OSError where nobody does in time."""
    deadline = time.monotonic() + wait_s
    while True:
        left_s = deadline - time.monotonic()
        try:
            socket.create_connection((address, port), max(left_s, POLL_S)).close()
        except OSError:
            if left_s <= 0:
                raise
            time.sleep(min(RETRY_S, left_s))
        else:
            return


def _interface_to(address: str) -> str | None:
    """The network interface through which an address is reached; gloo would go by our own name."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))  # sends nothing
        own = probe.getsockname()[0]
        for name, addresses in psutil.net_if_addrs().items():
            if any(found.address == own for found in addresses):
                return name
    return None


def _first_line(error: BaseException) -> str:
    """What torch says, without where in its source, and without advice to its developers."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.sub(r"^\[[^\]]*\.\w+:\d+\] ", "", line).partition(". ")[0]
