"""Have a cancel that reaches a run as SIGTERM end it as Cancelled, never as Crashed in between."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from prefect._internal import control_listener
from prefect.client.orchestration import get_client
from prefect.exceptions import TerminationSignal

log = logging.getLogger(__name__)


@contextmanager
def told_from_a_crash(flow_run_id: UUID) -> Iterator[None]:
    """Ask the server whether a SIGTERM that ends the flow was a cancel, and tell Prefect's engine.

    The worker announces a cancel, but the engine hears that only while its own handler of SIGTERM
    is in place. Training has another there meanwhile, to finish its step and save it.
    """
    try:
        yield
    except TerminationSignal:
        if control_listener.get_intent() is None and _is_cancelling(flow_run_id):
            control_listener._set_intent("cancel")
        raise


def _is_cancelling(flow_run_id: UUID) -> bool:
    try:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(flow_run_id).state
    except Exception as error:  # noqa: BLE001 (whatever kept it from answering: the signal counts)
        log.warning("could not ask whether the run was cancelled: %s", error)
        return False
    return state is not None and state.is_cancelling()
