import itertools
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from ups.runs.breakdown import Span, covered
from ups.runs.critical_path import critical_path, in_order, seconds_by_phase


def spans_of(*rows):
    """From rows of phase, start, end and, where it is not the phase, name."""
    return [Span(phase=p, start=s, end=e, name=(name or [p])[0]) for p, s, e, *name in rows]


def path_of(end, *rows, start=0):
    path = critical_path(spans_of(*rows), start, end)
    return [(step.name, step.start, step.end) for step in path]


STARTUP = spans_of(
    ("queue", 0, 1),
    ("boot", 1, 3),
    ("warm-up", 3, 6),
    ("download", 3, 5, "download [val]"),
    ("download", 3, 8, "download [train]"),
    ("download", 4, 7, "download [test]"),
    ("cache", 8, 10),
    ("load", 10, 11),
    ("first step", 11, 12),
    ("train", 12, 60),
)


def test_only_the_download_that_ended_last_is_on_the_path():
    path = critical_path(STARTUP, 0, 12)
    assert path[2].name == "download [train]"
    phases = ["queue", "boot", "download", "cache", "load", "first step"]
    assert [step.phase for step in path] == phases
    assert seconds_by_phase(path) == dict(zip(phases, (1, 2, 5, 2, 1, 1), strict=True))


def test_a_warm_up_that_outlasts_the_downloads_is_what_was_waited_for():
    waited_for = [("boot", 0, 2), ("warm-up", 2, 9), ("load", 9, 10)]
    assert path_of(10, ("download", 2, 5), *waited_for) == waited_for


def test_a_gap_between_phases_is_unaccounted():
    assert path_of(7, ("boot", 1, 3), ("cache", 4, 6)) == [
        ("unaccounted", 0, 1),
        ("boot", 1, 3),
        ("unaccounted", 3, 4),
        ("cache", 4, 6),
        ("unaccounted", 6, 7),
    ]


def test_a_gap_is_filled_by_the_span_that_ran_during_it():
    """A fresh interpreter: the warm-up imports torch, and ends just after the cache began."""
    ended_last = [("cache", 6.36, 6.37), ("load", 6.37, 6.48), ("first step", 6.48, 6.60)]
    before = [("boot", 0.0, 3.46), ("warm-up", 3.46, 6.41), ("download", 3.46, 3.59)]
    assert path_of(6.60, *before, *ended_last) == [
        ("boot", 0, 3.46),
        ("download", 3.46, 3.59),
        ("warm-up", 3.59, 6.36),
        *ended_last,
    ]


def test_a_gap_is_filled_by_the_span_that_covers_most_of_it_and_no_further():
    downloads = [("download", 4, 9, "short"), ("download", 2, 9, "long")]
    assert path_of(8, ("boot", 0, 1), *downloads, ("cache", 6, 7)) == [
        ("boot", 0, 1),
        ("unaccounted", 1, 2),
        ("long", 2, 6),
        ("cache", 6, 7),
        ("long", 7, 8),
    ]


def test_a_span_that_outlives_the_end_was_not_waited_for():
    waited_for = [("boot", 0, 4), ("first step", 4, 5)]
    assert path_of(5, ("download", 2, 30), *waited_for) == waited_for


def test_work_from_before_the_trigger_counts_from_the_trigger_on():
    assert path_of(3, ("warm-up", -9, -1), ("boot", -2, 3)) == [("boot", 0, 3)]


def test_of_two_that_ended_together_the_longer_is_on_the_path():
    assert path_of(6, ("warm-up", 4, 6), ("download", 0, 6)) == [("download", 0, 6)]


def test_a_span_of_no_length_takes_no_part():
    with_length = [("boot", 0, 2), ("load", 2, 3)]
    found = path_of(5, *with_length, ("cache", 2, 2), ("cache", 4, 4))
    assert found == [*with_length, ("unaccounted", 3, 5)]


def test_an_end_rounded_below_the_first_step_still_ends_with_it():
    at = 1_790_000_000.123
    rows = [("boot", at, at + 3), ("first step", at + 3, at + 4.000_000_3)]
    path = path_of(at + 4.0, *rows, start=at)
    assert [name for name, *_ in path] == ["boot", "first step"]


def test_no_spans_leave_everything_unaccounted():
    assert path_of(5, start=2) == [("unaccounted", 2, 5)]
    assert path_of(5, start=5) == []


MOMENTS = st.integers(-1024, 8 * 1024).map(lambda ticks: 1_790_000_000 + ticks / 1024)
SPANS = st.lists(
    st.tuples(st.sampled_from(["boot", "download", "warm-up", "cache"]), MOMENTS, MOMENTS).map(
        lambda row: spans_of((row[0], *sorted(row[1:])))[0]
    ),
    max_size=12,
)


@given(spans=SPANS, length=st.integers(1, 6 * 1024))
@settings(max_examples=120, deadline=None)
def test_the_path_adds_up_to_the_startup_and_only_what_no_span_covers_is_unaccounted(spans, length):
    start = 1_790_000_000
    end = start + length / 1024
    path = critical_path(spans, start, end)
    seconds = seconds_by_phase(path)
    assert math.fsum(seconds.values()) == end - start
    assert seconds.get("unaccounted", 0.0) == end - start - covered(spans, start, end)
    assert path[0].start == start
    assert path[-1].end == end
    assert all(one.end == two.start for one, two in itertools.pairwise(path))
    assert all(step.seconds > 0 for step in path)


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


def test_phases_come_in_the_order_of_a_startup_and_the_unaccounted_last():
    assert in_order(["unaccounted", "report", "load", "queue", "load"]) == [
        *("queue", "load", "report", "unaccounted")
    ]
