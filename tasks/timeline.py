"""What the tasks of a flow run did and when, and why they failed, by their own Prefect states.

The API lags about half a second behind a state, so the breakdown is made from the task-run
objects that the engine holds in this process: each task enters its own when it starts.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

from prefect import Task, get_run_logger
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.context import TaskRunContext

from tasks.failures import failed_with
from ups.errors import UpsError
from ups.runs.breakdown import Span
from ups.runs.record import describe_error

_timelines: dict[UUID, list[tuple[str, TaskRun]]] = {}
_lock = threading.Lock()


class PhaseTask(Task[..., Any]):
    """A task whose call raises what the state that it returns failed with."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs.pop("return_state", False):
            return super().__call__(*args, return_state=True, **kwargs)
        return super().__call__(*args, return_state=True, **kwargs).result()


def phase_task(phase: str, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """`@task` for one phase: never cached or persisted, unless said, and seen by the timeline.

    Prefect's default policy would hash every input, tensors included. The state of one that fails
    says the reason alone, except where it is cached: there Prefect keeps a failed state that is
    returned, and finds it again.
    """
    defaults = {"cache_policy": NO_CACHE, "persist_result": False}

    def decorate(body: Callable[..., Any]) -> Any:
        @functools.wraps(body)
        def watched(*args: Any, **kwargs: Any) -> Any:
            context = TaskRunContext.get()
            if context is None:
                return body(*args, **kwargs)
            watch(phase, context.task_run)
            try:
                return body(*args, **kwargs)
            except UpsError as error:
                if context.task.cache_policy is not NO_CACHE:
                    raise
                state = failed_with(error)
                get_run_logger().error(describe_error(error))
                return state

        return PhaseTask(watched, **{**defaults, **options})

    return decorate


def watch(phase: str, task_run: TaskRun) -> None:
    """Take a task run into the timeline of its flow run; a second time changes nothing."""
    if task_run.flow_run_id is None:
        return
    with _lock:
        runs = _timelines.setdefault(task_run.flow_run_id, [])
        if all(known.id != task_run.id for _, known in runs):
            runs.append((phase, task_run))


def close_timeline(flow_run_id: UUID) -> list[Span]:
    """The spans of a flow run, of which nothing more is noted: see `timeline`."""
    spans = timeline(flow_run_id)
    with _lock:
        _timelines.pop(flow_run_id, None)
    return spans


def timeline(flow_run_id: UUID) -> list[Span]:
    """The spans of a flow run so far, in order of their start; a task that still runs ends now."""
    with _lock:
        runs = list(_timelines.get(flow_run_id, ()))
    spans = []
    for phase, run in runs:
        state = run.state
        start = run.start_time or (state.timestamp if state else None)
        if start is None:
            continue
        end = run.end_time.timestamp() if run.end_time else time.time()
        spans.append(
            Span(
                phase=phase,
                name=run.name,
                start=start.timestamp(),
                end=end,
                state=state.name if state and state.name else "unknown",
            )
        )
    return sorted(spans, key=lambda span: span.start)
