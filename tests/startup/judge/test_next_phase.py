import pytest

from ups.runs.breakdown import Span
from ups.runs.critical_path import critical_path
from ups.startup.judge.next_phase import next_to_improve

STARTUP = [
    Span(phase=phase, name=phase, start=start, end=end)
    for phase, start, end in (
        *(("queue", 0, 1), ("boot", 1, 3), ("warm-up", 3, 6), ("download", 3, 8)),
        *(("cache", 8, 10), ("load", 10, 11), ("first step", 11, 12), ("train", 12, 60)),
    )
]


def test_the_next_phase_is_the_one_with_the_most_seconds_above_its_bound_if_any():
    path = critical_path(STARTUP, 0, 12)
    first = next_to_improve(path, {})
    assert (first.phase, first.seconds, first.bound_s, first.above_s) == ("download", 5, None, 5)
    second = next_to_improve(path, {"download": 4.5})  # 0.5 s left: boot has 2 s
    assert (second.phase, second.above_s) == ("boot", 2)
    third = next_to_improve(path, {"download": 4.5, "boot": 1.75, "cache": 0.25})
    assert (third.phase, third.seconds, third.bound_s) == ("cache", 2, 0.25)
    assert third.above_s == pytest.approx(1.75)
    at_its_bound = critical_path([Span(phase="boot", name="boot", start=0, end=2)], 0, 2)
    assert next_to_improve(at_its_bound, {"boot": 2.0}) is next_to_improve((), {}) is None
