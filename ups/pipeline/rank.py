"""What one of the ranks that a run started on this machine does, and how it says so."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import pickle
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Client
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

from ups.config import RunConfig
from ups.data.sources import Staged
from ups.errors import Interrupted, RankError, UpsError
from ups.machine.cgroup import num_cores
from ups.machine.processes import process_started_at
from ups.machine.ranks import Place
from ups.pipeline.phases import load_latents
from ups.trace import Trace

if TYPE_CHECKING:
    from ups.latents.build import CacheEntry
    from ups.latents.loader import Latents
    from ups.training.loop import TrainResult
    from ups.training.ranked_step import RankedStep
    from ups.training.ranks import Ranks

log = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1


@dataclass(slots=True)
class Job:
    """What a rank is to do.

    Attributes:
        latents: of the process that it was forked from; None: it loads them.
        sources, entries: problem → what they are loaded from.
        address, key: where it says how it goes.
        parent: the process that forked it; None where another one did.
    """

    config: RunConfig
    run_dir: Path
    resume: Path | None
    sources: Mapping[str, Mapping[str, Sequence[Staged]]]
    entries: Mapping[str, CacheEntry] | None
    latents: Latents | None
    address: str
    key: bytes
    parent: int | None


class Word(NamedTuple):
    """What a rank says: `started`, `joined`, `log`, `step`, `epoch`, `first step`, …"""

    rank: int
    what: str
    value: Any


def run_rank(job: Job) -> None:
    """Train as one of the ranks, in a process of its own, which ends with the run's process."""
    place = Place.of_environment()
    assert place is not None, "the launcher says which rank this is"
    _settle(job)
    line = _Line(job, place)
    line.say("started", (os.getpid(), process_started_at()))
    try:
        result = _train(job, place, line)
    except Interrupted as stop:
        line.say("stopped", None)
        if isinstance(stop.__context__, RankError):  # stopped by the launcher: another one failed
            raise SystemExit(1) from stop
    except BaseException as error:  # whatever it is, the run has to know; and the launcher
        line.say("failed", _portable(error, place))
        raise SystemExit(1) from error
    else:
        line.say("result", result)


def _train(job: Job, place: Place, line: _Line) -> TrainResult:
    import torch

    from ups.training.loop import train
    from ups.training.ranks import Ranks

    torch.set_num_threads(threads_of_rank(place.world))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    ranks = Ranks.join(job.config, place)
    line.say("joined", time.time())
    with ranks.failing_together():
        latents = job.latents
        if latents is None:
            latents = load_latents(job.config, job.sources, job.entries)
        trace = Trace()
        with trace.opened():
            result = train(
                job.config,
                latents,
                job.run_dir,
                step=step_of(job.config, ranks),
                ranks=ranks,
                resume=job.resume,
                on_first_step=lambda at: line.say("first step", at),
                on_first_epoch=lambda result: line.say("first epoch", result),
                progress=lambda last, total: line.say("progress", (last, total)),
            )
        ranks.leave()
        line.say("trace", trace)
    return result


def step_of(config: RunConfig, ranks: Ranks) -> RankedStep:
    """The step that the ranks take together."""
    if config.training.shard:
        from ups.training.sharded_step import ShardedStep

        return ShardedStep(config, ranks)
    from ups.training.ranked_step import RankedStep

    return RankedStep(config, ranks)


def threads_of_rank(num: int) -> int:
    """Threads on the CPU of each of the ranks of this machine."""
    return max(1, num_cores() // num)


def _settle(job: Job) -> None:
    """Be a process of one's own: what the parent has set up for itself is not for this one."""
    gc.freeze()  # the parent's objects may have threads that are not here
    gc.enable()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, _stop)
    for number in (signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the run tells us
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if job.parent is not None and os.getppid() != job.parent:
        os._exit(1)  # it died before it could be told to take this one along


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise Interrupted("training was stopped; a retry resumes it")


class _Line(logging.Handler):
    """To the run's process: what it logs and reports; rank 0's lines, and the others' warnings."""

    def __init__(self, job: Job, place: Place) -> None:
        super().__init__(logging.INFO if place.rank == 0 else logging.WARNING)
        self._rank, self._lock_line = place.rank, threading.Lock()
        self._connection = Client(job.address, "AF_UNIX", job.key)
        logging.root.handlers[:] = [self]
        for name in list(logging.root.manager.loggerDict):
            logger = logging.getLogger(name)
            logger.handlers[:], logger.propagate = [], True
        logging.getLogger("ups").setLevel(logging.INFO)

    def say(self, what: str, value: Any) -> None:
        """Say it; the steps of which nothing else depends on rank 0's alone."""
        with self._lock_line:
            self._connection.send(Word(self._rank, what, value))

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.split(".")[0] == "ups":
            self.say("log", (record.name, record.levelno, self.format(record)))


def _portable(error: BaseException, place: Place) -> BaseException:
    """The error as another process can have it: ours as they are, others in words."""
    if isinstance(error, UpsError):
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # noqa: BLE001 (whatever it holds that cannot go along)
            log.debug("%r goes along in words", error)
        else:
            return error
    if isinstance(error, OSError):
        return error
    return RuntimeError(f"rank {place.rank}: {type(error).__name__}: {error}")
