"""Trajectories that are waited for: no longer than it takes, and to hear of a fault or a stop."""

import threading

import numpy as np
import pytest

from ups.background import Background
from ups.errors import FetchError
from ups.latents.arrival import Arrival

GO_ON = threading.Event().is_set


def test_rows_are_waited_for_until_each_of_them_is_there():
    arrival, rows = Arrival(8), np.array([1, 6, 6])
    waiting = Background(lambda: arrival.wait_for(rows, GO_ON), "wait")
    arrival.note(0, 4)
    assert not waiting.is_done(0.1)
    arrival.note(6, 7)
    assert waiting.result()
    assert arrival.waited_s >= 0.1
    began_at, ended_at = arrival.first_wait
    assert ended_at - began_at == pytest.approx(arrival.waited_s, abs=0.05)
    waited_s = arrival.waited_s
    assert arrival.wait_for(np.array([0, 3]), GO_ON)
    assert arrival.waited_s == waited_s
    assert not arrival.is_settled


def test_the_end_of_it_all_is_told_to_who_waits_for_that():
    arrival = Arrival(1)
    arrival.note(0, 1)
    waiting = Background(lambda: arrival.wait_settled(GO_ON), "wait")
    assert not waiting.is_done(0.1)
    arrival.settle()
    assert waiting.result()
    assert arrival.is_settled
    assert arrival.first_wait[1] > arrival.first_wait[0]


def test_a_stop_ends_a_wait_and_the_first_fault_is_raised_to_everybody():
    arrival, stop = Arrival(4), threading.Event()
    waiting = Background(lambda: arrival.wait_for(np.arange(4), stop.is_set), "wait")
    stop.set()
    assert not waiting.result()
    waiting = Background(lambda: arrival.wait_settled(GO_ON), "wait")
    arrival.note(0, 4)
    arrival.fail(FetchError("gone"))
    arrival.fail(FetchError("gone, too"))
    for wait in (waiting.result, lambda: arrival.wait_for(np.array([0]), GO_ON)):
        with pytest.raises(FetchError, match="gone$"):
            wait()
