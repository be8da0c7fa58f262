"""Statistics, ratios and the order of contenders, on known numbers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speed.harness import Comparison, Contender, Result, Sample, alternate, nearest_bound

FINITE = st.floats(1e-6, 1e6)


def compare(better, **values):
    results = [Result(name, name.split("_")[0], list(v)) for name, v in values.items()]
    targets = {name: 0.5 for name in values if name != "ours"}
    return Comparison("p", results, "unit", better, targets)


@given(FINITE, FINITE)
def test_a_ratio_says_how_many_times_as_good_ours_is(mine, theirs):
    faster = compare("lower", ours=[mine], peer=[theirs]).ratio("peer")
    more = compare("higher", ours=[mine], peer=[theirs]).ratio("peer")
    assert math.isclose(faster, theirs / mine)
    assert math.isclose(faster * more, 1)


def test_ratios_are_of_medians_targets_compare_them_and_what_was_not_measured_has_none():
    medians = {"ours": [1.0, 2.0, 90.0], "peer": [8.0, 4.0, 1.0], "bound": [0.5, 0.8]}
    row = compare("lower", **medians, failed=[])
    assert [row.ratio(n) for n in ("peer", "failed", "nobody")] == [2.0, None, None]
    assert row.ratio("bound") == pytest.approx(0.325)
    assert row.reached() == {"peer": True, "bound": False, "failed": None}


def test_the_bound_that_allows_least_is_the_nearest():
    row = compare("lower", ours=[1.0], bound_read=[0.5], bound_write=[0.7, 0.9], peer=[2.0])
    assert nearest_bound(row.results) == "bound_write"


def test_contenders_take_turns_at_going_first_and_warm_ups_do_not_count():
    calls = []

    def contender(name):
        def run():
            calls.append(name)
            return float(len(calls))

        return Contender(name, "peer", run)

    results = alternate([contender(name) for name in "abc"], repeats=3, warm_ups=1)
    assert calls == list("bac" + "abc" + "acb" + "cab")
    assert [r.values for r in results] == [[4.0, 7.0, 11.0], [5.0, 9.0, 12.0], [6.0, 8.0, 10.0]]


def test_a_contender_that_fails_says_why_and_the_others_go_on():
    def fails():
        raise RuntimeError("no such\nprogram")

    contenders = [Contender("broken", "peer", fails), Contender("fine", "ours", lambda: 2.0)]
    broken, fine = alternate(contenders, repeats=2)
    assert broken.failed == "RuntimeError: no such program"
    assert (broken.values, fine.values, fine.failed) == ([], [2.0, 2.0], None)


def test_extras_are_kept_beside_the_values_and_preparation_comes_first():
    order = []

    def run():
        order.append("run")
        return Sample(1.0, {"CPU s": 3.0})

    contender = Contender("ours", "ours", run, before=lambda: order.append("before"))
    (result,) = alternate([contender], repeats=2, warm_ups=0)
    assert result.extras == {"CPU s": [3.0, 3.0]}
    assert order == ["before", "run"] * 2


def test_two_contenders_of_one_name_are_refused():
    same = Contender("a", "peer", lambda: 1.0)
    with pytest.raises(ValueError, match="share a name"):
        alternate([same, same], repeats=1)


def test_a_comparison_survives_json():
    row = compare("higher", ours=[1.0, 3.0], peer=[2.0])
    row.results[0].extras["GPU %"] = [97.0, 99.0]
    record = row.to_json()
    assert record["results"][0]["median"] == 2.0
    assert record["results"][0]["extras_median"] == {"GPU %": 98.0}
    assert record["results"][1]["ours_is_times_as_good"] == 1.0
    assert Comparison.from_json(record) == row
