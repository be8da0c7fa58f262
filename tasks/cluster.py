"""The parts of an entry as task runs on a Dask cluster, which stand in the page of the flow run."""

from __future__ import annotations

import contextvars
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext
from prefect.settings import get_current_settings

from ups.config import ProblemConfig
from ups.data.sources import Staged
from ups.latents.cluster import ask, connected, find_unreachable, refuse, require_dask, say_encoding
from ups.latents.dask_workers import Dask
from ups.latents.parts import Encoded, Part, Spread

if TYPE_CHECKING:
    from distributed import Client, Future
    from prefect_dask import DaskTaskRunner
    from prefect_dask.task_runners import PrefectDaskFuture

API_ANSWER_S = 10.0
API_REMEDY = (
    "set PREFECT_API_URL, where the runs' worker is started, to an address of the Prefect server "
    "that the Dask workers reach, too (UPS_HOST has a stack listen there)"
)


@task(cache_policy=NO_CACHE, persist_result=False)
def encode_part(config: ProblemConfig, encoder: Mapping[str, Any], part: Part) -> Encoded:
    """Encode a part of an entry, on the worker that this runs on."""
    from ups.latents import parts

    return parts.encode_part(config, encoder, part)


@flow(name="train-burgers")
def _on_a_worker() -> None:
    """Stands for the flow on the workers: they cannot import the file that it was loaded from."""


class DaskTasks(Dask):
    """Workers of a Dask cluster that encode each part in a task run.

    Args:
        in_flow: the context of the flow: that of a task would be sent along, with its parameters.
    """

    def __init__(
        self, client: Client, runner: DaskTaskRunner, in_flow: contextvars.Context
    ) -> None:
        super().__init__(client)
        self._runner, self._in_flow = runner, in_flow
        self._runs: dict[Future, PrefectDaskFuture[Encoded]] = {}

    def submit(self, config: ProblemConfig, encoder: Mapping[str, Any], part: Part) -> Future:
        run = self._in_flow.run(self._submit, config, encoder, part)
        self._runs[run.wrapped_future] = run
        return run.wrapped_future

    def _submit(
        self, config: ProblemConfig, encoder: Mapping[str, Any], part: Part
    ) -> PrefectDaskFuture[Encoded]:
        named = encode_part.with_options(task_run_name=f"2 encode [{part.label}]")
        context = FlowRunContext.get()
        assert context is not None
        with context.model_copy(update={"flow": _on_a_worker, "parameters": {}}):
            given = {"config": config, "encoder": encoder, "part": part}
            return self._runner.submit(named, given)

    def result(self, future: Future) -> Encoded:
        return self._runs.pop(future).result()


def parts_as_tasks() -> Spread:
    """The workers of the config's cluster, each part a task run of the flow run that asks here."""
    in_flow = contextvars.copy_context()

    @contextmanager
    def spread(config: ProblemConfig, sources: Sequence[Staged]) -> Iterator[DaskTasks]:
        require_dask()
        require_dask("prefect_dask")
        from prefect_dask import DaskTaskRunner

        with (
            connected(config, sources) as client,
            DaskTaskRunner(address=client.scheduler.address) as runner,
        ):
            url = get_current_settings().api.url
            deadline = time.monotonic() + API_ANSWER_S
            answers = ask(client, deadline, find_unreachable, f"{url}/health").values()
            refuse([str(fault) for fault in answers if fault], API_REMEDY)
            say_encoding(client)
            yield DaskTasks(client, runner, in_flow)

    return spread
