"""Start the ranks of a run on this machine through torch's elastic agent, and listen to them.

The agent works in a thread, so that signals stay with whoever handles them in this process: the
first one asks the ranks to stop, which they do together.
"""

from __future__ import annotations

import gc
import importlib
import logging
import math
import os
import queue
import secrets
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ups.background import Background
from ups.config import RunConfig
from ups.data.sources import Staged
from ups.errors import Interrupted, RankError, UpsError
from ups.latents.key import ENCODED_SPLITS
from ups.machine.devices import has_gpu_node
from ups.machine.processes import DeferredSignals
from ups.machine.ranks import local_ranks
from ups.pipeline.rank import Job, Word, run_rank, threads_of_rank
from ups.pipeline.state import RunState
from ups.progress import Progress
from ups.trace import note_all_of

if TYPE_CHECKING:
    from ups.latents.build import CacheEntry
    from ups.latents.loader import Latents
    from ups.training.loop import TrainResult

log = logging.getLogger(__name__)

MONITOR_S = 0.1
SHUTDOWN_S = 5  # that ranks have to end after one of them failed
STOP_S = 20.0  # that they have to stop and save, before they are killed
WARM = ["ups.pipeline.rank", "ups.training.loop", "ups.training.ranked_step"]
# What these say at length is said here in a line.
QUIET = ["torch.distributed.elastic", "torch.distributed.launcher", "torch.multiprocessing"]
ENDS = ("result", "stopped", "failed")
OF_AGENT = "TORCHELASTIC_SIGNALS_TO_HANDLE"  # which it leaves in the environment


def how_to_start(num: int) -> str:
    """`fork` where this process may: with a GPU here, it may have touched CUDA.

    A child with several threads would wait for ever for those of OpenMP that its parent has used.
    Otherwise the ranks come from multiprocessing's server, which has imported torch, and no more.
    """
    return "forkserver" if has_gpu_node() or threads_of_rank(num) > 1 else "fork"


def prepare_ranks(config: RunConfig) -> None:
    """Import what the ranks need, beside the downloads, where they will be forked from."""
    warm = [*WARM, "ups.training.sharded_step"] if config.training.shard else WARM
    if how_to_start(local_ranks(config)) == "fork":
        for name in (*warm, "torch.distributed.launcher.api"):
            importlib.import_module(name)
    else:
        forkserver.set_forkserver_preload(warm)
        forkserver.ensure_running()


@dataclass(frozen=True, slots=True)
class Ranked:
    """What the ranks of a run are started with.

    Attributes:
        num: how many.
        sources, entries: problem → what those load their latents from that do not share any.
        on_start: called with the Unix times at which the last of them was started, and had joined.
    """

    num: int
    sources: Mapping[str, Mapping[str, Sequence[Staged]]]
    entries: Mapping[str, CacheEntry] | None
    on_start: Callable[[float, float], None]

    @classmethod
    def of_run(cls, run: RunState) -> Self:
        """Of a run whose entries and sources are known."""
        num, problems = local_ranks(run.config), run.config.data.problems
        sources = {problem.name: run.staged_of(problem, ENCODED_SPLITS) for problem in problems}
        return cls(num, sources, run.entries or None, run.note_ranks)


def train_in_ranks(
    config: RunConfig,
    ranks: Ranked,
    latents: Latents,
    run_dir: Path,
    *,
    resume: Path | None = None,
    stop: threading.Event | None = None,
    on_first_step: Callable[[float], None],
    on_first_epoch: Callable[[TrainResult], None],
    progress: Progress,
) -> TrainResult:
    """Train as `ups.training.loop.train` does, in several processes.

    Args:
        latents: those of this process, which ranks that are forked from it share.
    Raises:
        RankError: one was killed, or could not be started.
        Interrupted: `stop` was set. Otherwise what `train` raises, from the rank that failed.
    """
    num = ranks.num
    method, key = how_to_start(num), secrets.token_bytes(16)
    forks = method == "fork"
    log.info("training in %d ranks (%s)", num, method)
    with _Exchange(key) as exchange, DeferredSignals() as signals, ExitStack() as starting:
        starting.enter_context(_collector_off() if forks else _without_main())
        job = Job(
            config,
            run_dir,
            resume,
            ranks.sources,
            ranks.entries,
            latents if forks and latents.tier != "on demand" else None,
            exchange.address,
            key,
            os.getpid() if forks else None,
        )
        agent = Background(lambda: _launch(job, num, method), "elastic agent")
        said = _Said(num, ranks.on_start, on_first_step, on_first_epoch, progress)
        told: set[int] = set()
        give_up_at = math.inf
        try:
            while not agent.is_done(0):
                said.take(exchange.words(MONITOR_S / 2))
                if len(said.pids) == num:
                    starting.close()
                if signals.pending is not None or (stop is not None and stop.is_set()):
                    give_up_at = min(give_up_at, time.monotonic() + STOP_S)
                    late = time.monotonic() > give_up_at
                    for pid in said.pids.values():
                        if late or pid not in told:
                            told.add(pid)
                            _send(pid, signal.SIGKILL if late else signal.SIGTERM)
            said.take(exchange.words(0))
        except BaseException:  # a second signal, or what a report raised; raised again
            for pid in said.pids.values():
                _send(pid, signal.SIGKILL)
            agent.is_done(SHUTDOWN_S)
            raise
        finally:
            os.environ.pop(OF_AGENT, None)
    if told and not said.is_complete:  # no handler of the signal, delivered above, has raised
        raise Interrupted("training was stopped; a retry resumes it")
    return said.result(agent.error())


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _launch(job: Job, num: int, method: str) -> None:
    """Start the ranks, and wait until they have ended.

    Raises:
        ChildFailedError: one has failed; the others are not there any more.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in QUIET:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num,
        run_id="ranks",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=MONITOR_S,
        start_method=method,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),  # no folder, which a kill would leave
        shutdown_timeout=SHUTDOWN_S,
    )
    elastic_launch(config, run_rank)(job)


@contextmanager
def _collector_off() -> Iterator[None]:
    """Have no garbage of this process be collected in one that is being forked from it.

    What is destroyed there may wait for threads that only this process has. The rank switches the
    collector on again, once it leaves all this alone.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def _without_main() -> Iterator[None]:
    """Have multiprocessing not import in its processes what this one's program is."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


class _Exchange:
    """Where the ranks of this machine say how it goes: a socket without a file."""

    def __init__(self, key: bytes) -> None:
        self.address = f"\0ups-ranks-{os.getpid()}-{secrets.token_hex(4)}"
        self._listener = Listener(self.address, "AF_UNIX", authkey=key)
        self._words: queue.SimpleQueue[Word] = queue.SimpleQueue()
        self._readers: list[Background[None]] = []

    def __enter__(self) -> _Exchange:
        self._accepting = Background(self._accept, "listen to the ranks")
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def words(self, wait_s: float) -> Iterator[Word]:
        """What was said; waits so long for the first. Without a wait, all that will be."""
        if wait_s == 0:
            for reader in self._readers:
                reader.is_done(SHUTDOWN_S)
        with suppress(queue.Empty):
            if wait_s:
                yield self._words.get(timeout=wait_s)
            while True:
                yield self._words.get_nowait()

    def _accept(self) -> None:
        with suppress(OSError):  # it is closed
            while True:
                connection = self._listener.accept()
                self._readers.append(
                    Background(lambda c=connection: self._read(c), "listen to a rank")  # type: ignore[misc]
                )

    def _read(self, connection: Connection) -> None:
        with suppress(EOFError, OSError):  # it has ended
            while True:
                self._words.put(connection.recv())


class _Said:
    """What the ranks have said so far; passes on what others want to know."""

    def __init__(
        self,
        num: int,
        on_start: Callable[[float, float], None],
        on_first_step: Callable[[float], None],
        on_first_epoch: Callable[[TrainResult], None],
        progress: Progress,
    ) -> None:
        self.pids: dict[int, int] = {}
        self._num, self._on_start = num, on_start
        self._pass_on: dict[str, Callable[[Any], None]] = {
            "first step": on_first_step,
            "first epoch": on_first_epoch,
            "progress": lambda value: progress(*value),
            "trace": note_all_of,
        }
        self._started: list[float] = []
        self._joined: list[float] = []
        self._results: dict[int, TrainResult] = {}
        self._errors: list[BaseException] = []
        self._ended: set[int] = set()

    def take(self, words: Iterator[Word]) -> None:
        for rank, what, value in words:
            if what in ENDS:
                self._ended.add(rank)
            if what == "log":
                name, level, text = value
                logging.getLogger(name).log(level, "%s%s", f"rank {rank}: " if rank else "", text)
            elif what == "started":
                self.pids[rank], started_at = value
                self._started.append(started_at)
            elif what == "joined":
                self._joined.append(value)
                if len(self._joined) == self._num:
                    self._on_start(max(self._started), max(self._joined))
            elif what == "failed":
                self._errors.append(value)
            elif what == "result":
                self._results[rank] = value
            elif what in self._pass_on and rank == 0:
                self._pass_on[what](value)

    @property
    def is_complete(self) -> bool:
        """Whether all have ended as they should."""
        return len(self._results) == self._num

    def result(self, error: BaseException | None) -> TrainResult:
        """What rank 0 came to; raises what the ranks ended with, the cause before its echoes."""
        if error is None:
            return self._results[0]
        raised = [e for e in self._errors if not getattr(e, "is_echo", False)]
        if raised:
            raise min(raised, key=lambda e: not isinstance(e, UpsError))
        silent = self.pids.keys() - self._ended
        if self._errors and not silent:
            raise self._errors[0]
        raise _explain(error, silent) from None


def _explain(error: BaseException, silent: Set[int]) -> BaseException:
    """A rank that ended without a word, in one line.

    Args:
        silent: those that have not said how they ended.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if not isinstance(error, ChildFailedError):
        return error
    rank, failure = error.get_first_failure()
    if failure.exitcode >= 0:
        what = f"rank {min(silent, default=rank)} ended without a word"
        return RankError(f"{what}; the others were stopped. See the log, and start again")
    name = signal.Signals(-failure.exitcode).name
    remedy = "the system may have run out of memory: see dmesg, " if name == "SIGKILL" else ""
    return RankError(
        f"rank {rank} (process {failure.pid}) was ended by {name}; the others were stopped. "
        f"{remedy[:1].upper() + remedy[1:]}{'and s' if remedy else 'S'}tart again: it resumes from "
        "the last checkpoint"
    )
