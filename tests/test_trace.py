"""Stretches that threads note, and what it costs them."""

import threading
import time

import numpy as np
import pytest

from ups import trace as tracing
from ups.background import Background, in_context
from ups.trace import Thread, Trace, note_steps, note_stretch, noted


def test_what_happens_inside_is_noted_by_each_thread_that_was_started_inside():
    trace = Trace()

    def work(item):
        with noted("work", item=item):
            time.sleep(0.001)

    with trace.opened():
        Background(lambda: work(1), "beside").result()
        pooled = threading.Thread(target=in_context(work), args=(2,), name="pooled")
    pooled.start()  # whenever it is started
    pooled.join()
    bare = threading.Thread(target=work, args=(3,))
    bare.start()
    bare.join()
    found = [(s.name, s.thread.name, s.facts) for s in trace.stretches]
    assert found == [("work", "beside", {"item": 1}), ("work", "pooled", {"item": 2})]
    assert all(0.001 <= s.end - s.start < 1 for s in trace.stretches)


def test_what_fails_is_noted_with_its_error_and_nothing_after_the_end():
    trace = Trace()
    with trace.opened(), pytest.raises(OSError, match="full"), noted("write", file="a"):
        raise OSError("full")
    with noted("later"):
        pass
    note_stretch("later", 0, 1)
    assert note_steps(np.arange(4), 0, 2).began_at == []
    assert [(s.name, s.facts) for s in trace.stretches] == [
        ("write", {"file": "a", "error": "OSError"})
    ]
    assert trace.steps is None


def test_beyond_a_number_stretches_are_left_out_and_counted(monkeypatch):
    monkeypatch.setattr(tracing, "MOST_STRETCHES", 2)
    trace = Trace()
    with trace.opened():
        for n in range(5):
            note_stretch(f"{n}", n, n + 1)
    assert ([s.name for s in trace.stretches], trace.num_left_out) == (["0", "1"], 3)


def test_a_step_takes_its_rows_of_the_epoch_from_where_the_process_began():
    steps = note_steps(np.array([5, 3, 1, 0, 4, 2]), 2, 2)
    assert steps.thread == Thread(threading.get_native_id(), "MainThread")
    assert [steps.rows(n).tolist() for n in range(3)] == [[1, 0], [4, 2], []]
