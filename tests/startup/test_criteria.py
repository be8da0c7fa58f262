"""What the plan asks, checked on runs whose figures are known."""

import pytest

from ups.startup.compare import compare
from ups.startup.criteria import check, criteria_rows


@pytest.fixture
def checked(benchmark, bases):
    """`checked(downloads_s, reused)`: what is asked → the criterion."""

    def make(downloads_s, reused):
        record = benchmark(downloads_s)
        runs = tuple(
            run.model_copy(update={"cache_reused": reused.get(run.scenario, False)})
            for run in record.runs
        )
        record = record.model_copy(update={"runs": runs})
        found = check(compare(record, {**bases, "changed-config": None}), runs)
        return {criterion.asks: criterion for criterion in found}

    return make


def test_three_runs_as_the_plan_asks_for_them_meet_it(checked):
    found = checked(
        {"cold": (2.0,), "warm": (0.1, 0.3, 0.2), "changed-config": (0.1,)}, {"warm": True}
    )
    assert found["a first run builds the cache"].is_met
    assert found["the same config again reuses it"].measured == "3 of 3 runs"
    assert found["another latent.dim builds it anew"].is_met
    assert found["time to first step of that"].measured == "2.95 s"
    assert found["time to first step of that"].is_met


def test_reuse_beyond_boot_is_the_rest_of_the_time(checked):
    found = checked({"warm": (0.2,)}, {"warm": True})["of it beyond queue and boot"]
    assert found.measured == "1.95 s"  # 2.95 s, of which boot takes 1.00 s
    assert not found.is_met


def test_a_cache_that_is_not_reused_is_counted(checked):
    found = checked({"warm": (0.2, 0.3)}, {"warm": False})["the same config again reuses it"]
    assert found.measured == "0 of 2 runs"
    assert not found.is_met


def test_cold_must_be_shorter_than_legacy_in_every_phase(checked):
    asks = "cold is shorter than legacy in every phase"
    assert checked({"legacy": (7.0,), "cold": (2.0,)}, {})[asks].is_met
    longer = checked({"legacy": (2.0,), "cold": (2.5,)}, {})[asks]
    assert not longer.is_met
    assert longer.measured == "longer: download 2.50 s, 2.00 s"


def test_only_what_ran_is_judged(checked):
    assert list(checked({"cold": (2.0,)}, {})) == ["a first run builds the cache"]


def test_a_row_says_target_and_figure(checked):
    rows = criteria_rows(tuple(checked({"warm": (0.2,)}, {"warm": True}).values()))
    assert rows[1] == {
        "asked by": "plan",
        "what": "time to first step of that",
        "target": "< 30 s",
        "measured": "2.95 s",
        "met": "✓",
    }
