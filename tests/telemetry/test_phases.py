import pytest

from ups.telemetry.phases import Span, covered, plan_metrics, tabulate


def span(phase, start, end):
    return Span(phase=phase, name=phase, start=start, end=end)


def test_overlapping_spans_are_counted_once():
    spans = [span("a", 0, 4), span("b", 2, 6), span("c", 8, 9), span("d", 3, 5)]
    assert covered(spans, 0, 10) == 7


def test_only_the_part_inside_the_startup_counts():
    assert covered([span("a", -5, 3), span("b", 9, 20)], 0, 10) == 4


def test_phases_and_the_unaccounted_rest_are_tabulated():
    spans = [
        span("queue", 0, 1),
        span("boot", 1, 3),
        span("download", 3, 5),
        span("download", 3.5, 6),
        span("warm-up", 3, 7),
        span("first step", 8, 10),
        span("train", 10, 60),
    ]
    rows = {row.phase: row for row in tabulate(spans, {"download": "network"}, 0, 10)}
    assert list(rows) == ["queue", "boot", "download", "warm-up", "first step", "unaccounted"]
    assert rows["download"].seconds == 3
    assert rows["download"].share == pytest.approx(0.3)
    assert rows["download"].bound == "network"
    assert rows["unaccounted"].seconds == pytest.approx(1)


def test_the_metrics_keep_the_names_and_units_of_the_plan():
    metrics = plan_metrics(
        cache_s=90, cache_reused=False, startup_s=120, ttfs_s=120, cost_usd=0.063
    )
    assert metrics["startup/cache_precompute_time_min"] == 1.5
    assert metrics["startup/cache_reused"] == 0
    assert metrics["startup/total_startup_time_min"] == 2
    assert metrics["startup/ttfs_s"] == 120
