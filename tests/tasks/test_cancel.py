"""Whether a SIGTERM was a cancel: the server is asked, where the worker's word was not heard."""

from uuid import uuid4

import pytest
from prefect import flow
from prefect._internal import control_listener
from prefect.client.orchestration import get_client
from prefect.exceptions import TerminationSignal
from prefect.states import State

from tasks.cancel import told_from_a_crash


@pytest.fixture
def intent_after(prefect_server):
    """`intent_after(run_id)`: what Prefect's engine takes a SIGTERM for."""

    def end(run_id):
        with pytest.raises(TerminationSignal), told_from_a_crash(run_id):
            raise TerminationSignal(15)
        return control_listener.get_intent()

    control_listener.clear_intent()
    yield end
    control_listener.clear_intent()


@flow
def nothing():
    """Stands for a run."""


@pytest.mark.parametrize(("kind", "intent"), [("CANCELLING", "cancel"), ("RUNNING", None)])
def test_a_signal_is_a_cancel_where_the_server_says_so(intent_after, kind, intent):
    with get_client(sync_client=True) as client:
        run_id = client.create_flow_run(nothing, state=State(type="RUNNING")).id
        client.set_flow_run_state(run_id, State(type=kind), force=True)
    assert intent_after(run_id) == intent


def test_a_server_that_does_not_know_is_no_cancel_and_is_said_unless_the_worker_told(
    intent_after, caplog
):
    control_listener._set_intent("cancel")
    assert intent_after(uuid4()) == "cancel"
    assert caplog.text == ""
    control_listener.clear_intent()
    assert intent_after(uuid4()) is None
    assert "could not ask whether the run was cancelled" in caplog.text
