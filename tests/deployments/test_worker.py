"""The waker: what a stream of events does to a worker. Runs on the real one are in test_runs."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from uuid import uuid4

import anyio
import httpx
import pytest
from anyio import CapacityLimiter
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import PrefectHTTPStatusError
from prefect.runner._cancellation_manager import CancellationManager
from prefect.settings import PREFECT_CLIENT_RETRY_EXTRA_CODES, temporary_settings
from prefect.workers.process import ProcessWorker, ProcessWorkerResult

from deployments import worker as worker_module
from deployments.layout import WORKER_ENV
from deployments.patience import be_patient
from deployments.worker import Waker, Worker, cancel_only_what_is_cancelling


class CountingWorker:
    """Stands where a worker is asked to look for runs, and says when the next one is due."""

    _work_pool_name = "pool"
    is_full = False

    def __init__(self, due_in_s=None, failures=0):
        self.looks = 0
        self.failures = failures
        self.due = due_in_s and datetime.now(UTC) + timedelta(seconds=due_in_s)
        self.client = SimpleNamespace(read_flow_runs=self.read_flow_runs)

    async def get_and_submit_flow_runs(self):
        self.looks += 1
        if self.failures:
            self.failures -= 1
            raise ConnectionError("the server restarts")
        return ["a run"]

    async def read_flow_runs(self, **_):
        if self.due and self.due > datetime.now(UTC):
            return [SimpleNamespace(next_scheduled_start_time=self.due)]
        return []


def looks_after(worker, seconds, wakes=()):
    """How often the worker looked within `seconds`, woken at the given times."""

    async def scenario():
        waker = Waker(worker)
        task = asyncio.create_task(waker.submit_when_woken())
        for at in wakes:
            asyncio.get_running_loop().call_later(at, waker.wake)
        await asyncio.sleep(seconds)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return worker.looks

    return asyncio.run(scenario())


def test_nothing_is_asked_while_nothing_happens():
    assert looks_after(CountingWorker(), 0.3) == 0


def test_an_event_is_answered_at_once():
    assert looks_after(CountingWorker(), 0.1, wakes=[0.02]) == 1


def test_many_events_at_once_are_one_look_and_one_after_it():
    assert looks_after(CountingWorker(), 0.2, wakes=[0.02] * 50) <= 2


def test_a_run_scheduled_for_later_is_looked_for_when_it_is_due():
    assert looks_after(CountingWorker(due_in_s=0.2), 0.1) == 0
    assert looks_after(CountingWorker(due_in_s=0.2), 0.5) == 1


@pytest.mark.parametrize("failures", [1, 2])
def test_a_server_that_fails_does_not_end_the_waker(failures):
    assert looks_after(CountingWorker(failures=failures), 0.5, wakes=[0.02, 0.2, 0.4]) >= 3


@pytest.mark.parametrize(("num_chars", "is_told"), [(2, True), (200_000, False)])
def test_a_run_is_told_what_it_was_asked_for_unless_that_is_too_long(
    monkeypatch, num_chars, is_told
):
    parameters = {"config": "é" * num_chars}
    run = SimpleNamespace(id=uuid4(), state=None, parameters=parameters)
    configuration = SimpleNamespace(env={"HOME": "/root"})

    async def process(self, *_):
        told = configuration.env.pop("UPS_PARAMETERS", "null")
        assert json.loads(told) == (parameters if is_told else None)
        return ProcessWorkerResult(identifier="1", status_code=0)

    async def read_flow_run(run_id):
        return run

    monkeypatch.setattr(ProcessWorker, "run", process)
    worker = Worker(work_pool_name="pool")
    worker._client = SimpleNamespace(read_flow_run=read_flow_run)
    asyncio.run(worker.run(run, configuration))
    assert configuration.env == {"HOME": "/root"}


@pytest.mark.parametrize("kind", ["CRASHED", "CANCELLING", None])
def test_the_end_of_a_process_is_reported_once_and_a_cancel_nobody_heard_is_carried_out(
    monkeypatch, kind
):
    run = SimpleNamespace(id=uuid4(), state=State(type=kind or "RUNNING"), parameters={})
    made, configuration = [], SimpleNamespace(env={})

    async def process(self, *_):
        await self.end_cancelling(run.id)
        assert made == [], "its process is still there"
        return ProcessWorkerResult(identifier="1", status_code=-9)

    async def read_flow_run(run_id):
        if kind is None:
            raise ConnectionError("the server is gone")
        return run

    async def set_flow_run_state(run_id, state, force):
        made.append((run_id, state.name))

    monkeypatch.setattr(ProcessWorker, "run", process)
    worker = Worker(work_pool_name="pool")
    worker._client = SimpleNamespace(
        read_flow_run=read_flow_run, set_flow_run_state=set_flow_run_state
    )
    # Prefect would report another code once more, by when a retry may have begun.
    assert asyncio.run(worker.run(run, configuration)).status_code == 0
    assert made == ([(run.id, "Cancelled")] if kind == "CANCELLING" else [])


@pytest.mark.parametrize(
    ("kind", "end_runs", "marked"),
    [
        ("RUNNING", True, ["Crashed"]),
        ("CANCELLING", True, ["Cancelled"]),
        ("COMPLETED", True, []),
        ("RUNNING", False, []),  # on a stack `ups down` marks them
    ],
)
def test_a_worker_that_is_stopped_marks_the_runs_that_end_with_it(
    monkeypatch, kind, end_runs, marked
):
    run, made = SimpleNamespace(id=uuid4(), state=State(type=kind), parameters={}), []

    async def process(*_):
        await asyncio.sleep(60)

    async def read_flow_run(_):
        await asyncio.sleep(0)  # as a request: what is cancelled goes no further
        return run

    async def set_flow_run_state(run_id, state, force):
        made.append((run_id, state.name, state.message))

    async def scenario():
        worker = Worker(end_runs, work_pool_name="pool", name="gpu-1")
        worker._client = SimpleNamespace(
            read_flow_run=read_flow_run, set_flow_run_state=set_flow_run_state
        )
        async with anyio.create_task_group() as group:
            group.start_soon(worker.run, run, SimpleNamespace(env={}))
            await asyncio.sleep(0.01)
            group.cancel_scope.cancel()

    monkeypatch.setattr(ProcessWorker, "run", process)
    asyncio.run(scenario())
    assert made == [(run.id, name, "Its worker gpu-1 was stopped.") for name in marked]


@pytest.mark.parametrize(
    ("kinds", "is_cancelled"),
    [
        (["CANCELLING"], True),
        (["RUNNING", "RUNNING", "CANCELLING"], True),  # the event came before the commit
        (["RUNNING"] * 4, False),  # a retry; the event is of a cancel before it
        (["CANCELLED"], False),
    ],
)
def test_an_event_cancels_a_run_that_is_cancelling_or_will_be_at_once_and_no_retry(
    monkeypatch, kinds, is_cancelled
):
    run_id, cancelled, seen, waits = uuid4(), [], iter(kinds), []

    async def read_flow_run(_):
        return SimpleNamespace(id=run_id, state=State(type=next(seen)))

    async def cancel(_, flow_run):
        cancelled.append(flow_run.id)

    async def wait(seconds):
        waits.append(seconds)

    monkeypatch.setattr(CancellationManager, "cancel", cancel)
    monkeypatch.setattr(CancellationManager, "cancel_by_id", CancellationManager.cancel_by_id)
    monkeypatch.setattr(worker_module, "asyncio", SimpleNamespace(sleep=wait))
    cancel_only_what_is_cancelling()
    parts = dict.fromkeys(("process_manager", "hook_runner", "state_proposer", "event_emitter"))
    manager = CancellationManager(**parts, client=SimpleNamespace(read_flow_run=read_flow_run))
    asyncio.run(manager.cancel_by_id(run_id))
    assert cancelled == [run_id] * is_cancelled
    assert list(seen) == []  # no look too few; one too many would have raised
    assert sum(waits) < 3


@pytest.mark.parametrize(("busy", "is_answered"), [(8, True), (1_000_000, False)])
def test_a_server_that_is_busy_for_long_crashes_no_run(monkeypatch, busy, is_answered):
    """SQLite answers 503 at once; Prefect's own client gives up after six of them."""
    run, asked = FlowRun(flow_id=uuid4(), name="queued"), []

    def answer(request):
        asked.append(request.url.path)
        if len(asked) <= busy:
            return httpx.Response(503, json={"exception_message": "Service Unavailable"})
        return httpx.Response(200, json=run.model_dump(mode="json"))

    async def no_wait(_):
        pass

    async def read():
        transport = httpx.MockTransport(answer)
        client = PrefectClient("http://x/api", httpx_settings={"transport": transport})
        be_patient(client, for_s=60 if is_answered else 0)
        return await client.read_flow_run(run.id)

    monkeypatch.setattr("prefect.client.base.anyio", SimpleNamespace(sleep=no_wait))
    if is_answered:
        assert asyncio.run(read()).id == run.id
        assert len(asked) == busy + 1
    else:
        with pytest.raises(PrefectHTTPStatusError, match="503"):
            asyncio.run(read())
        assert len(asked) >= 6


def test_a_server_whose_database_restarts_is_asked_again_by_a_run(monkeypatch):
    """Prefect's server answers 500 then, and its client takes that for final."""
    run, waits = FlowRun(flow_id=uuid4(), name="at its end"), []

    def answer(_):
        if len(waits) < 5:
            return httpx.Response(500, json={"exception_message": "Internal Server Error"})
        return httpx.Response(200, json=run.model_dump(mode="json"))

    async def wait(seconds):
        waits.append(seconds)

    async def read():
        transport = httpx.MockTransport(answer)
        client = PrefectClient("http://x/api", httpx_settings={"transport": transport})
        return await client.read_flow_run(run.id)

    monkeypatch.setattr("prefect.client.base.anyio", SimpleNamespace(sleep=wait))
    codes = WORKER_ENV["PREFECT_CLIENT_RETRY_EXTRA_CODES"]
    with temporary_settings({PREFECT_CLIENT_RETRY_EXTRA_CODES: codes}):
        assert asyncio.run(read()).id == run.id
    assert sum(waits) > 45


def test_the_worker_that_prefect_sets_up_is_patient(monkeypatch):
    async def setup(self):
        self._client = "its client"

    patient = []
    monkeypatch.setattr(ProcessWorker, "setup", setup)
    monkeypatch.setattr("deployments.worker.be_patient", patient.append)
    asyncio.run(Worker(work_pool_name="pool").setup())
    assert patient == ["its client"]


def test_a_worker_that_is_full_asks_for_nothing_until_a_run_of_its_own_ends():
    class Full(CountingWorker):
        is_full = True

    assert looks_after(Full(), 0.2, wakes=[0.02, 0.1]) == 0

    async def scenario():
        worker, woken = Worker(work_pool_name="pool", limit=1), []
        worker._limiter, worker.when_free = CapacityLimiter(1), lambda: woken.append(worker.is_full)
        run_id = uuid4()
        assert not worker.is_full
        worker._limiter.acquire_on_behalf_of_nowait(run_id)
        assert worker.is_full
        worker._release_limit_slot(run_id)
        return woken

    assert asyncio.run(scenario()) == [False]
    assert not Worker(work_pool_name="pool").is_full
