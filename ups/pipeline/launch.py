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
import secrets
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ups.background import Background
from ups.config import RunConfig
from ups.data.sources import Staged
from ups.latents.key import ENCODED_SPLITS
from ups.machine.devices import has_gpu_node
from ups.machine.processes import DeferredSignals
from ups.machine.ranks import local_ranks, why_ranks_wait
from ups.pipeline.exchange import Exchange, Said
from ups.pipeline.rank import Job, Training, Work, run_rank, threads_of_rank
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
WARM = [
    "ups.pipeline.rank",
    "ups.training.evaluate",
    "ups.training.loop",
    "ups.training.ranked_step",
]
# What these say at length is said here in a line.
QUIET = ["torch.distributed.elastic", "torch.distributed.launcher", "torch.multiprocessing"]
OF_AGENT = "TORCHELASTIC_SIGNALS_TO_HANDLE"  # which it leaves in the environment


def how_to_start(num: int, *, beside_threads: bool) -> str:
    """`fork` where this process may: with a GPU here, it may have touched CUDA.

    A child with several threads would wait for ever for those of OpenMP that its parent has used,
    and any child for what threads hold that fetch and encode. Otherwise the ranks come from
    multiprocessing's server, which has imported torch, and no more.

    Args:
        beside_threads: whether others are at work in this process.
    """
    forks = not beside_threads and not has_gpu_node() and threads_of_rank(num) == 1
    return "fork" if forks else "forkserver"


def start_server(config: RunConfig) -> None:
    """Have the server that ranks may come from import what they need: torch takes a second."""
    num, may_stream = local_ranks(config), config.may_stream and not why_ranks_wait(config)
    if how_to_start(num, beside_threads=may_stream) == "forkserver":
        forkserver.set_forkserver_preload(_needed(config))
        with _sigterm_blocked():
            forkserver.ensure_running()


@contextmanager
def _sigterm_blocked() -> Iterator[None]:
    """Block SIGTERM in this thread, whose mask is inherited by what is started in it.

    So one that goes to all processes of a group, as a service manager's does, leaves the server
    alone, whose end would be that of the ranks before they have saved; and one that comes to a rank
    before it can stop waits until it can.
    """
    resource_tracker.ensure_running()  # which unblocks it where it has to start that process
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def prepare_ranks(config: RunConfig) -> None:
    """Import what it takes to start the ranks, beside the downloads."""
    start_server(config)
    forks = how_to_start(local_ranks(config), beside_threads=False) == "fork"
    for name in (*(_needed(config) if forks else []), "torch.distributed.launcher.api"):
        importlib.import_module(name)


def _needed(config: RunConfig) -> list[str]:
    return [*WARM, "ups.training.sharded_step"] if config.training.shard else WARM


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
        if run.latents is not None and run.latents.shared is not None:
            return cls(num, {}, None, run.note_ranks)
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
    num, joined = ranks.num, dict[int, float]()
    first_epochs: dict[int, TrainResult] = {}
    method = how_to_start(num, beside_threads=latents.shared is not None)
    own = latents if method == "fork" and latents.tier != "on demand" else None

    def note_joined(rank: int, at: float) -> None:
        joined[rank] = at
        if len(joined) == num:
            ranks.on_start(max(said.started), max(joined.values()))

    def note_first_epoch(rank: int, result: TrainResult) -> None:
        first_epochs[rank] = result
        if len(first_epochs) == num:
            on_first_epoch(_of_slowest(first_epochs))

    def note_first_wait(times: tuple[float, float] | None) -> None:
        if latents.arrival is not None:
            latents.arrival.first_wait = times

    said = Said(
        num,
        {
            "joined": note_joined,
            "first wait": _of_first(note_first_wait),
            "first step": _of_first(on_first_step),
            "first epoch": note_first_epoch,
            "progress": _of_first(lambda value: progress(*value)),
            "trace": _of_first(note_all_of),
        },
    )
    log.info("training in %d ranks (%s)", num, method)
    work = Training(config, run_dir, resume, ranks.sources, ranks.entries, own, latents.shared)
    run_ranks(work, num, method, said, stop, "training was stopped; a retry resumes it")
    return _of_slowest(said.results)


def _of_first(take: Callable[[Any], None]) -> Callable[[int, Any], None]:
    """Of what all ranks say, pass on what rank 0 does."""
    return lambda rank, value: take(value) if rank == 0 else None


def _of_slowest(results: Mapping[int, TrainResult]) -> TrainResult:
    """What rank 0 came to; the times at which a device began and waited are the most idle one's."""
    epochs = [result.first_epoch for result in results.values() if result.first_epoch is not None]
    times = {
        "first_epoch": (max(e[0] for e in epochs), max(e[1] for e in epochs)) if epochs else None,
        "waited_s": max(result.waited_s for result in results.values()),
    }
    return results[0].model_copy(update=times)


def run_ranks(
    work: Work, num: int, method: str, said: Said, stop: threading.Event | None, stopped: str
) -> None:
    """Have so many processes of this machine do something, and hear what they say, until they end.

    Args:
        work: what each does; it knows which of them it is.
        method: of `how_to_start`.
        stopped: what to say where `stop`, or a signal, has stopped them.
    Raises:
        RankError: one was killed, or could not be started.
        Interrupted: they were stopped. Otherwise what one of them failed with.
    """
    forks, key = method == "fork", secrets.token_bytes(16)
    with Exchange(key) as exchange, DeferredSignals() as signals, ExitStack() as starting:
        starting.enter_context(_collector_off() if forks else _without_main())
        job = Job(work, exchange.address, key, os.getpid() if forks else None)
        agent = Background(lambda: _launch(job, num, method), "elastic agent")
        told: set[int] = set()
        give_up_at = math.inf
        try:
            while not agent.is_done(0):
                said.take(exchange.words(MONITOR_S / 2))
                if len(said.pids) == num:
                    starting.close()
                if said.has_lost:  # of those that have stopped, the launcher waits for an exit
                    for rank in said.ended:
                        _send(said.pids[rank], signal.SIGTERM)
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
    # no handler of the signal, delivered above, has raised
    said.require_all(agent.error(), is_told=bool(told), stopped=stopped)


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
    with _sigterm_blocked():
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
