"""A process worker that the server's event stream wakes; polling stays as the fallback.

    python -m deployments.worker POOL [--name NAME] [--queue NAME]... [--limit N] [--end-runs]
                                      [--warm-socket PATH]

Prefect's own worker asks every 10 seconds by default; asking more often makes SQLite refuse writes.
The stream tells within milliseconds that a run was scheduled. Events only wake: what is to be
run is always what the server answers, so an event that is lost, late or double loses and doubles
nothing. A run scheduled for later is waited for by the clock. One that waited because a worker had
as many as it may begins as soon as another ends.

Prefect's worker cancels a run through the process that it has told to watch for that. Where there
is none yet, or none any more, the run would stay Cancelling and keep its deployment's slot; here it
ends Cancelled as well. A worker that is stopped takes its runs with it, and Prefect would have them
Running for ever: with `--end-runs` they are marked as Crashed. On a stack `ups down` does that.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
from abc import ABC
from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import anyio
from anyio.abc import TaskStatus
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.events.clients import get_events_subscriber
from prefect.events.filters import EventFilter, EventNameFilter
from prefect.runner._cancellation_manager import CancellationManager
from prefect.states import Cancelled, Crashed
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker, ProcessWorkerResult

from deployments.patience import be_patient
from deployments.processes import say_ending
from deployments.servers import LoginRefused, check_login
from deployments.settings import environment_of_settings, keep_environment_of_settings
from deployments.start import PARAMETERS
from deployments.tls import share_tls_contexts
from ups.machine.openmp import bound_spinning

log = logging.getLogger("prefect.worker.events")

WAKING = ["prefect.flow-run.Scheduled", "prefect.flow-run.AwaitingRetry"]
CANCELLING = "prefect.flow-run.Cancelling"
RECONNECT_S = (0.5, 1, 2, 5)
SECOND_LOOK_S = 0.1
COMMITTED_S = (0.0, 0.1, 0.4, 1.5)  # before each look at what an event says
LOOK_AHEAD_S = 30.0
MOST_PARAMETERS = 32_000  # characters; the kernel starts no process with 131,072 in one variable
LAST_WORD_S = 5.0  # for what a worker that ends has to say of each run


class QueueIsQuiet(logging.Filter):
    """Of a run that waits for another of its deployment, say so at first and then ever more rarely.

    Prefect's worker tries it again every few seconds, with two lines each time.
    """

    def __init__(self) -> None:
        super().__init__()
        self._tries: dict[object, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        run_id = getattr(record, "flow_run_id", None)
        if record.msg.startswith("Aborted submission") and "'SCHEDULED'" in record.msg:
            self._tries[run_id] = tries = self._tries.get(run_id, 0) + 1
            record.msg, record.args = "waiting for another run, which goes first", ()
            return tries & (tries - 1) == 0  # 1, 2, 4, 8, ...
        is_again = run_id in self._tries and "submitting flow run" in record.msg
        return not is_again


async def read_cancelling(client: PrefectClient, run_id: UUID) -> FlowRun | None:
    """The run of an event that says that it is Cancelling, if it is; else None.

    The server sends the event before it commits the state, so a query may not see it at once.
    """
    for wait_s in COMMITTED_S:
        await asyncio.sleep(wait_s)
        flow_run = await client.read_flow_run(run_id)
        if flow_run.state is not None and flow_run.state.is_cancelling():
            return flow_run
        if flow_run.state is not None and flow_run.state.is_final():
            break
    return None


def cancel_only_what_is_cancelling() -> None:
    """Have Prefect's worker look at a run's state before it ends the run for an event.

    Whoever begins to listen hears the events of the last minute again: a retry that follows a
    cancel within it was ended by that cancel.
    """

    async def cancel_by_id(self: CancellationManager, flow_run_id: UUID) -> None:
        if flow_run := await read_cancelling(self._client, flow_run_id):
            await self.cancel(flow_run)

    CancellationManager.cancel_by_id = cancel_by_id  # type: ignore[method-assign]


class Worker(ProcessWorker, ABC):  # an ABC does not take Prefect's place in its registry of types
    """Prefect's own, with an end for every run that is cancelled.

    Args:
        end_runs: mark those under way as Crashed when it is stopped.
    """

    def __init__(self, end_runs: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.end_runs = end_runs
        self.under_way: Counter[UUID] = Counter()  # a retry may begin before its first attempt left
        self.when_free: Callable[[], None] = lambda: None

    @property
    def is_full(self) -> bool:
        """Whether it has as many runs as it may."""
        return self._limiter is not None and self._limiter.available_tokens == 0

    def _release_limit_slot(self, flow_run_id: UUID) -> None:
        """As Prefect's; the next run in the queue need not wait until the server is polled."""
        super()._release_limit_slot(flow_run_id)
        if self._limiter is not None:
            self.when_free()

    async def setup(self) -> None:
        """As Prefect's; a server that is busy for a while crashes no run from now on."""
        await super().setup()
        be_patient(self.client)

    async def run(
        self,
        flow_run: FlowRun,
        configuration: ProcessJobConfiguration,
        task_status: TaskStatus[int] | None = None,
    ) -> ProcessWorkerResult:
        """Run it in a process; a cancel that came before that process could know is heard here."""
        parameters = json.dumps(flow_run.parameters)
        if len(parameters) <= MOST_PARAMETERS:
            configuration.env[PARAMETERS] = parameters
        self.under_way[flow_run.id] += 1
        try:
            result = await super().run(flow_run, configuration, task_status)
        except asyncio.CancelledError:
            if self.end_runs:
                with anyio.move_on_after(LAST_WORD_S, shield=True):
                    await self.end_stopped(flow_run.id)
            raise
        finally:
            self.under_way[flow_run.id] -= 1
            await self.end_cancelling(flow_run.id)
        # How it ended was reported as it did. Prefect would report a code other than 0 once more
        # by now, and so mark a retry as Crashed that has begun since.
        return result.model_copy(update={"status_code": 0})

    async def end_stopped(self, run_id: UUID) -> None:
        """Mark a run that ends with this worker as Crashed; as Cancelled if that was asked for."""
        message = f"Its worker {self.name} was stopped."
        try:
            state = (await self.client.read_flow_run(run_id)).state
            if state is None or not state.is_final():
                is_cancelling = state is not None and state.is_cancelling()
                ended = Cancelled(message=message) if is_cancelling else Crashed(message=message)
                await self.client.set_flow_run_state(run_id, ended, force=True)
        except Exception as error:  # noqa: BLE001 (there is no other way to say it)
            log.warning("could not mark the run %s as Crashed: %s", run_id, error)

    async def end_cancelling(self, run_id: UUID) -> None:
        """Mark a run as Cancelled if it is Cancelling, and has no process of this worker's."""
        try:
            run = await self.client.read_flow_run(run_id)
            if run.state and run.state.is_cancelling() and not self.under_way[run_id]:
                ended = Cancelled(message="It was cancelled before it began.")
                await self.client.set_flow_run_state(run_id, ended, force=True)
        except Exception as error:  # noqa: BLE001 (the server's own clean-up ends it, later)
            log.warning("could not end the cancelled run %s: %s", run_id, error)


class Waker:
    """Submits what is due whenever it is woken; one at a time, however many events there are."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Have the worker look for runs now."""
        self._wake.set()

    async def submit_when_woken(self) -> None:
        """Look for runs at every wake, and when one that is scheduled for later is due."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), await self._seconds_until_next())
            self._wake.clear()
            if self.worker.is_full:  # the end of a run wakes it
                continue
            try:
                if not await self.worker.get_and_submit_flow_runs():
                    # An event can be a little ahead of what queries see.
                    await asyncio.sleep(SECOND_LOOK_S)
                    await self.worker.get_and_submit_flow_runs()
            except Exception as error:  # noqa: BLE001 (the poll that goes on asks again)
                log.warning("could not ask for runs: %s", error)

    async def listen(self) -> None:
        """Wake on every event; after each connection once, for what was missed before it."""
        only = EventFilter(event=EventNameFilter(name=[*WAKING, CANCELLING]))
        failures = 0
        while True:
            try:
                async with get_events_subscriber(filter=only) as subscriber:
                    log.info("listening for scheduled runs")
                    failures = 0
                    self.wake()
                    async for event in subscriber:
                        if event.event != CANCELLING:
                            self.wake()
                        # One that waits to be retried is in no worker's hands.
                        elif event.payload["intended"]["from"] == "SCHEDULED":
                            run_id = UUID(event.resource.id.removeprefix("prefect.flow-run."))
                            if await read_cancelling(self.worker.client, run_id):
                                await self.worker.end_cancelling(run_id)
            except Exception as error:  # noqa: BLE001 (whatever ended the stream: connect again)
                log.info("event stream lost (%s): polling until it is back", error)
            await asyncio.sleep(RECONNECT_S[min(failures, len(RECONNECT_S) - 1)])
            failures += 1

    async def _seconds_until_next(self) -> float:
        """Until the next run that is scheduled for later, or until it is time to look again."""
        due_later = {
            "state": {"type": {"any_": ["SCHEDULED"]}},
            "next_scheduled_start_time": {"after_": datetime.now(UTC)},
        }
        of_pool = {"name": {"any_": [self.worker._work_pool_name]}}
        try:
            runs = await self.worker.client.read_flow_runs(
                flow_run_filter=FlowRunFilter.model_validate(due_later),
                work_pool_filter=WorkPoolFilter.model_validate(of_pool),
                sort=FlowRunSort.NEXT_SCHEDULED_START_TIME_ASC,
                limit=1,
            )
        except Exception as error:  # noqa: BLE001 (the poll that goes on finds scheduled runs)
            log.warning("could not ask when the next run is due: %s", error)
            return LOOK_AHEAD_S
        if not runs or runs[0].next_scheduled_start_time is None:
            return LOOK_AHEAD_S
        due = (runs[0].next_scheduled_start_time - datetime.now(UTC)).total_seconds()
        return min(max(due, 0.0), LOOK_AHEAD_S)


async def work(
    pool: str,
    name: str,
    queues: list[str] | None = None,
    limit: int | None = None,
    end_runs: bool = False,
) -> None:
    """Run the worker until it is cancelled; on all queues of the pool, or on these alone."""
    worker = Worker(
        end_runs=end_runs,
        work_pool_name=pool,
        work_queues=queues,
        name=name,
        create_pool_if_not_found=False,
        limit=limit,
    )
    async with anyio.create_task_group() as group:
        group.start_soon(_wake_on_events, worker)
        await worker.start()
        group.cancel_scope.cancel()


async def _wake_on_events(worker: Worker) -> None:
    while not worker._has_successfully_synced:
        await asyncio.sleep(0.05)
    waker = Waker(worker)
    worker.when_free = waker.wake
    async with anyio.create_task_group() as group:
        group.start_soon(waker.submit_when_woken)
        group.start_soon(waker.listen)


@contextlib.asynccontextmanager
async def warm_process(socket_path: str | None) -> AsyncIterator[None]:
    """Keep a warm process beside the worker: started anew when it dies, ended with the worker."""
    if socket_path is None:
        yield
        return
    os.environ["UPS_WARM_SOCKET"] = socket_path
    command = [sys.executable, "-m", "deployments.zygote", socket_path]
    env = {**os.environ, **environment_of_settings()}  # as the runs get it: their settings are its

    async def keep() -> None:
        while True:
            process = await asyncio.create_subprocess_exec(*command, env=env, stdin=subprocess.PIPE)
            try:
                code = await process.wait()
            finally:
                if process.stdin is not None:
                    process.stdin.close()
            log.warning("the process kept ready ended with exit code %s: starting another", code)
            await asyncio.sleep(RECONNECT_S[-1])

    task = asyncio.create_task(keep())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def main(begin: Callable[[], None] = lambda: None) -> None:
    """Run the worker that the command line asks for, until SIGTERM or Ctrl-C.

    Args:
        begin: returns when the work may begin; imports, here and in the kept process, go on before.
    """
    parser = argparse.ArgumentParser(description="A process worker woken by events.")
    parser.add_argument("pool")
    parser.add_argument("--name", default="event-woken")
    parser.add_argument("--queue", action="append", help="a work queue to serve (default: all)")
    parser.add_argument("--limit", type=int, help="runs at once (default: any number)")
    parser.add_argument(
        "--end-runs", action="store_true", help="those under way are Crashed when it is stopped"
    )
    parser.add_argument("--warm-socket", help="keep a process ready there, for warm starts")
    given = parser.parse_args()
    bound_spinning(os.environ)  # which the kept process and the runs inherit
    share_tls_contexts()
    keep_environment_of_settings()
    cancel_only_what_is_cancelling()
    logging.getLogger("prefect.flow_runs.worker").addFilter(QueueIsQuiet())

    async def run() -> None:
        task = asyncio.current_task()
        assert task is not None

        def end() -> None:
            say_ending()
            task.cancel()

        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end)
        async with warm_process(given.warm_socket):
            await asyncio.to_thread(begin)
            await asyncio.to_thread(check_login)  # Prefect's worker would end with pages of text
            await work(given.pool, given.name, given.queue, given.limit, given.end_runs)

    with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
        try:
            asyncio.run(run())
        except LoginRefused as fault:
            sys.exit(f"error: {fault}")


if __name__ == "__main__":
    main()
