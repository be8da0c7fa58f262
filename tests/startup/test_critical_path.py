import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ups.startup.critical_path import critical_path, in_order, next_to_improve, seconds_by_phase
from ups.telemetry.phases import Span, covered


def span(phase, start, end, name=None):
    return Span(phase=phase, name=name or phase, start=start, end=end)


def drawn(path):
    return [(step.name, step.start, step.end) for step in path]


STARTUP = [
    span("queue", 0, 1),
    span("boot", 1, 3),
    span("warm-up", 3, 6),
    span("download", 3, 5, "download [val]"),
    span("download", 3, 8, "download [train]"),
    span("download", 4, 7, "download [test]"),
    span("cache", 8, 10),
    span("load", 10, 11),
    span("first step", 11, 12),
    span("train", 12, 60),
]


def test_only_the_download_that_ended_last_is_on_the_path():
    path = critical_path(STARTUP, 0, 12)
    assert [name for name, _, _ in drawn(path)] == [
        *("queue", "boot", "download [train]", "cache", "load", "first step"),
    ]
    assert seconds_by_phase(path) == {
        "queue": 1,
        "boot": 2,
        "download": 5,
        "cache": 2,
        "load": 1,
        "first step": 1,
    }


def test_a_warm_up_that_outlasts_the_downloads_is_what_was_waited_for():
    spans = [span("boot", 0, 2), span("download", 2, 5), span("warm-up", 2, 9), span("load", 9, 10)]
    assert drawn(critical_path(spans, 0, 10)) == [
        ("boot", 0, 2),
        ("warm-up", 2, 9),
        ("load", 9, 10),
    ]


def test_a_gap_between_phases_is_unaccounted():
    spans = [span("boot", 1, 3), span("cache", 4, 6)]
    assert drawn(critical_path(spans, 0, 7)) == [
        ("unaccounted", 0, 1),
        ("boot", 1, 3),
        ("unaccounted", 3, 4),
        ("cache", 4, 6),
        ("unaccounted", 6, 7),
    ]


def test_a_gap_is_filled_by_the_span_that_ran_during_it():
    """A fresh interpreter: the warm-up imports torch, and ends just after the cache began."""
    spans = [
        span("boot", 0.0, 3.46),
        span("warm-up", 3.46, 6.41, "warm-up-device"),
        span("download", 3.46, 3.59, "download [val]"),
        span("cache", 6.36, 6.37, "build-latent-cache"),
        span("load", 6.37, 6.48),
        span("first step", 6.48, 6.60),
    ]
    assert drawn(critical_path(spans, 0, 6.60)) == [
        ("boot", 0, 3.46),
        ("download [val]", 3.46, 3.59),
        ("warm-up-device", 3.59, 6.36),
        ("build-latent-cache", 6.36, 6.37),
        ("load", 6.37, 6.48),
        ("first step", 6.48, 6.60),
    ]


def test_a_gap_is_filled_by_the_span_that_covers_most_of_it_and_no_further():
    spans = [
        span("boot", 0, 1),
        span("download", 4, 9, "short"),
        span("download", 2, 9, "long"),
        span("cache", 6, 7),
    ]
    assert drawn(critical_path(spans, 0, 8)) == [
        ("boot", 0, 1),
        ("unaccounted", 1, 2),
        ("long", 2, 6),
        ("cache", 6, 7),
        ("long", 7, 8),
    ]


def test_a_span_that_outlives_the_end_was_not_waited_for():
    spans = [span("boot", 0, 4), span("download", 2, 30), span("first step", 4, 5)]
    assert drawn(critical_path(spans, 0, 5)) == [("boot", 0, 4), ("first step", 4, 5)]


def test_work_from_before_the_trigger_counts_from_the_trigger_on():
    spans = [span("warm-up", -9, -1), span("boot", -2, 3)]
    assert drawn(critical_path(spans, 0, 3)) == [("boot", 0, 3)]


def test_of_two_that_ended_together_the_longer_is_on_the_path():
    spans = [span("warm-up", 4, 6), span("download", 0, 6)]
    assert drawn(critical_path(spans, 0, 6)) == [("download", 0, 6)]


def test_a_span_of_no_length_takes_no_part():
    spans = [span("boot", 0, 2), span("cache", 2, 2), span("load", 2, 3), span("cache", 4, 4)]
    path = drawn(critical_path(spans, 0, 5))
    assert path == [("boot", 0, 2), ("load", 2, 3), ("unaccounted", 3, 5)]


def test_an_end_rounded_below_the_first_step_still_ends_with_it():
    triggered_at = 1_790_000_000.123
    done_at = triggered_at + 4.000_000_3
    spans = [
        span("boot", triggered_at, triggered_at + 3),
        span("first step", triggered_at + 3, done_at),
    ]
    path = critical_path(spans, triggered_at, triggered_at + 4.0)
    assert [step.phase for step in path] == ["boot", "first step"]


def test_no_spans_leave_everything_unaccounted():
    assert drawn(critical_path([], 2, 5)) == [("unaccounted", 2, 5)]
    assert critical_path([], 5, 5) == ()


MOMENTS = st.integers(-1024, 8 * 1024).map(lambda ticks: 1_790_000_000 + ticks / 1024)
SPANS = st.lists(
    st.tuples(st.sampled_from(["boot", "download", "warm-up", "cache"]), MOMENTS, MOMENTS).map(
        lambda drawn: span(drawn[0], min(drawn[1:]), max(drawn[1:]))
    ),
    max_size=12,
)


@given(spans=SPANS, length=st.integers(1, 6 * 1024))
@settings(max_examples=120, deadline=None)
def test_the_phases_of_the_path_add_up_to_the_startup_exactly(spans, length):
    start = 1_790_000_000
    end = start + length / 1024
    path = critical_path(spans, start, end)
    assert math.fsum(seconds_by_phase(path).values()) == end - start
    assert path[0].start == start
    assert path[-1].end == end
    assert all(one.end == two.start for one, two in itertools.pairwise(path))
    assert all(step.seconds > 0 for step in path)


@given(spans=SPANS, length=st.integers(1, 6 * 1024))
@settings(max_examples=120, deadline=None)
def test_only_what_no_span_covers_is_unaccounted(spans, length):
    start = 1_790_000_000
    end = start + length / 1024
    unaccounted = seconds_by_phase(critical_path(spans, start, end)).get("unaccounted", 0.0)
    assert unaccounted == end - start - covered(spans, start, end)


@given(spans=SPANS)
@settings(max_examples=60, deadline=None)
def test_a_step_that_did_not_end_with_its_span_fills_a_gap(spans):
    """It is within its span, and no other ended in it: that one would have been waited for."""
    start, end = 1_790_000_000, 1_790_000_006
    for step in critical_path(spans, start, end):
        if step.phase == "unaccounted":
            continue
        own = [s for s in spans if s.name == step.name and s.start <= step.start < s.end]
        if not any(s.end == step.end for s in own):
            assert any(s.end > step.end for s in own)
            assert not any(step.start < s.end <= step.end and s.start < s.end for s in spans)


def test_the_next_phase_is_the_one_with_the_most_seconds_above_its_bound():
    path = critical_path(STARTUP, 0, 12)
    first = next_to_improve(path, {})
    assert (first.phase, first.seconds, first.bound_s, first.above_s) == ("download", 5, None, 5)
    second = next_to_improve(path, {"download": 4.5})  # 0.5 s left: boot has 2 s
    assert (second.phase, second.above_s) == ("boot", 2)
    third = next_to_improve(path, {"download": 4.5, "boot": 1.75, "cache": 0.25})
    assert (third.phase, third.seconds, third.bound_s) == ("cache", 2, 0.25)
    assert third.above_s == pytest.approx(1.75)


def test_nothing_is_next_where_every_phase_is_at_its_bound():
    path = critical_path([span("boot", 0, 2)], 0, 2)
    assert next_to_improve(path, {"boot": 2.0}) is None
    assert next_to_improve((), {}) is None


def test_phases_come_in_the_order_of_a_startup_and_the_unaccounted_last():
    assert in_order(["unaccounted", "report", "load", "queue", "load"]) == [
        *("queue", "load", "report", "unaccounted")
    ]
