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
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from ups.background import Background
from ups.config import RunConfig
from ups.data.sources import Staged
from ups.errors import Interrupted, RankError, portable
from ups.machine.cgroup import num_cores
from ups.machine.processes import process_started_at
from ups.machine.ranks import Place, take_gpu
from ups.pipeline.phases import load_latents
from ups.trace import Trace

if TYPE_CHECKING:
    from ups.latents.board import SharedLatents
    from ups.latents.build import CacheEntry
    from ups.latents.loader import Latents
    from ups.training.loop import TrainResult
    from ups.training.ranked_step import RankedStep
    from ups.training.ranks import Ranks

log = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1


class Work(Protocol):
    """What a rank is to do.

    Attributes:
        stops_together: whether the ranks agree on when to stop.
    """

    stops_together: ClassVar[bool]

    def __call__(self, place: Place, line: Line) -> Any:
        """Do it, and return what it came to.

        Args:
            place: which of them this process is.
            line: where it says how it goes.
        """


@dataclass(slots=True)
class Job:
    """What a rank is started with.

    Attributes:
        address, key: where it says how it goes.
        parent: the process that forked it; None where another one did.
    """

    work: Work
    address: str
    key: bytes
    parent: int | None


class Word(NamedTuple):
    """What a rank says: `started`, `joined`, `log`, `progress`, `first step`, `batch`, …"""

    rank: int
    what: str
    value: Any


def run_rank(job: Job) -> None:
    """Be one of the ranks, in a process of its own, which ends with the run's process."""
    place = Place.of_environment()
    assert place is not None, "the launcher says which rank this is"
    _settle(job)
    line = Line(job, place)
    if job.parent is None:  # the server would live as long as those that it has forked
        Background(line.end_with_run, "end with the run")
    line.say("started", (os.getpid(), process_started_at()))
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])  # the launcher blocks it
        result = job.work(place, line)
    except (Interrupted, Terminated) as stop:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # nothing cuts the last word short
        line.say("stopped", None)
        # A rank that ends well is kept by the launcher until the others do; and it stops those that
        # are left when another one failed.
        if not job.work.stops_together or isinstance(stop.__context__, RankError):
            raise SystemExit(1) from stop
    except BaseException as error:  # whatever it is, the run has to know; and the launcher
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        line.say("failed", portable(error, f"rank {place.rank}"))
        raise SystemExit(1) from error
    else:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        line.say("result", result)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # there is nothing left to stop


@dataclass(slots=True)
class Training:
    """To train as one of the ranks.

    Attributes:
        latents: of the process that it was forked from; None: it loads them.
        shared: how it opens those that the run's process streams.
        sources, entries: problem → what they are loaded from.
    """

    stops_together: ClassVar[bool] = True

    config: RunConfig
    run_dir: Path
    resume: Path | None
    sources: Mapping[str, Mapping[str, Sequence[Staged]]]
    entries: Mapping[str, CacheEntry] | None
    latents: Latents | None
    shared: SharedLatents | None

    def __call__(self, place: Place, line: Line) -> TrainResult:
        import torch

        from ups.training.loop import train
        from ups.training.ranks import Ranks

        torch.set_num_threads(threads_of_rank(place.world))
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        ranks = Ranks.join(self.config, place)
        line.say("joined", time.time())
        with ranks.failing_together():
            latents = self._latents(place)
            arrival, trace = latents.arrival, Trace()

            def note_first_step(at: float) -> None:
                if arrival is not None:
                    line.say("first wait", arrival.first_wait)
                line.say("first step", at)

            with trace.opened():
                result = train(
                    self.config,
                    latents,
                    self.run_dir,
                    step=step_of(self.config, ranks),
                    ranks=ranks,
                    resume=self.resume,
                    on_first_step=note_first_step,
                    on_first_epoch=lambda result: line.say("first epoch", result),
                    progress=lambda last, total: line.say("progress", (last, total)),
                )
            ranks.leave()
            line.say("trace", trace)
        return result

    def _latents(self, place: Place) -> Latents:
        """Those that are to be trained on, from wherever they are."""
        if self.shared is not None:
            from ups.latents.streamed import open_shared

            return open_shared(self.config, self.shared, leads=place.rank == 0)
        if self.latents is not None:
            return self.latents
        return load_latents(self.config, self.sources, self.entries)


@dataclass(slots=True)
class Scoring:
    """To score some of the batches of the test split.

    Attributes:
        test, encoders, num_batches: problem → the files of its test split, the encoder of its
            latents as a manifest holds it, and how many batches it has.
    """

    stops_together: ClassVar[bool] = False

    config: RunConfig
    checkpoint: Path
    test: Mapping[str, Sequence[Staged]]
    encoders: Mapping[str, Mapping[str, Any]]
    num_batches: Mapping[str, int]

    def __call__(self, place: Place, line: Line) -> None:
        import torch

        from ups.latents.encode import PatchEncoder
        from ups.training.evaluate import Scorer
        from ups.training.scored_batch import score_batches

        torch.set_num_threads(threads_of_rank(place.world))
        if self.config.training.device != "cpu":
            take_gpu(place.local_rank)
        encoders = {name: PatchEncoder.from_manifest(e) for name, e in self.encoders.items()}
        scorer = Scorer.of_checkpoint(self.config, self.checkpoint, encoders)
        equations, before = self.config.data.equations, 0
        for name, config in self.config.by_problem().items():
            own = range((place.rank - before) % place.world, self.num_batches[name], place.world)
            encoder, test = scorer.encoders[name], self.test[name]
            for number, batch in score_batches(
                config, equations, scorer.model, test, encoder, is_chosen=own.__contains__
            ):
                batch.to_host()
                line.say("batch", (name, number, batch))
            before += self.num_batches[name]


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
    # Prefect's would wait, at the end, for threads that are not here, and fail.
    calls: list[Any] = threading._threading_atexits  # type: ignore[attr-defined]
    calls[:] = [call for call in calls if call.func.__module__.startswith("concurrent.futures")]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if job.parent is not None and os.getppid() != job.parent:
        os._exit(1)  # it died before it could be told to take this one along


class Terminated(BaseException):
    """Raised in a rank by SIGTERM: no `except Exception` is to take it for a fault of its own."""


def _stop(_number: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is on its way out
    raise Terminated("the run was stopped")


class Line(logging.Handler):
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
        """Say it.

        Plainly pickled: `send` would leave tensors in memory that is shared with a process that
        may have ended when they are read.
        """
        with self._lock_line:
            self._connection.send_bytes(pickle.dumps(Word(self._rank, what, value)))

    def end_with_run(self) -> None:
        """End this process once that of the run, which says nothing here, is gone."""
        self._connection.poll(None)
        os.kill(os.getpid(), signal.SIGKILL)

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.split(".")[0] == "ups":
            self.say("log", (record.name, record.levelno, self.format(record)))
