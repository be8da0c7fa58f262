"""Calls in threads: many at a time, ended by the first fault or a stop."""

import threading
import time

import pytest

from ups.background import at_once
from ups.errors import Interrupted


def test_results_come_in_order_and_no_more_calls_than_wanted_are_under_way():
    under_way, most, lock = 0, 0, threading.Lock()

    def double(number):
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.01 * (3 - number % 3))
        with lock:
            under_way -= 1
        return 2 * number

    assert at_once(double, range(9), 3, None, "work") == list(range(0, 18, 2))
    assert most == 3
    assert at_once(double, [], 3, None, "work") == []


def test_after_a_fault_no_other_call_is_begun():
    begun, both, failed = [], threading.Barrier(2), threading.Event()

    def call(number):
        begun.append(number)
        if number < 2:
            both.wait(5)
        if number == 0:
            raise ValueError("no 0")
        failed.wait(5)

    with pytest.raises(ValueError, match="no 0"):
        at_once(call, range(100), 2, None, "work")
    failed.set()
    time.sleep(0.05)
    assert sorted(begun) == [0, 1]


def test_a_stop_is_heard_while_calls_go_on_and_before_any():
    stop, go_on = threading.Event(), threading.Event()
    stopping = threading.Timer(0.1, stop.set)
    stopping.start()
    with pytest.raises(Interrupted, match="stopped while waiting for work"):
        at_once(lambda _: go_on.wait(20), [1, 2], 2, stop, "work")
    go_on.set()
    with pytest.raises(Interrupted, match="stopped while waiting for work"):
        at_once(lambda _: None, [1], 1, stop, "work")
