"""Idle seconds in the benchmark's pictures."""

import pytest
from matplotlib.colors import to_rgb

from tests.startup.conftest import with_idle
from tests.startup.show.test_pictures import (
    AT,
    DAY_S,
    check_that_it_can_be_read,
    points,
    shown,
    summaries,
)
from ups.startup.judge.compare import Spread, compare
from ups.startup.judge.verdict import Verdict
from ups.startup.show.pictures import IDLE_COLOUR, phases_figure, shares_figure, trend_figure


@pytest.fixture
def idle_comparison(benchmark):
    """Two benchmarks, the second with idle seconds far beyond TTFS, which were judged worse."""
    worse = Verdict(scenario="cold", figure="idle", kind="worse", num_before=9, num_now=3)
    first, second = with_idle(benchmark()), with_idle(benchmark(id="b2", verdicts=(worse,)), 9.0)
    second = second.model_copy(update={"started_at": second.started_at + DAY_S})
    return compare(second, [first, second])


def test_idle_seconds_are_in_every_picture_and_can_be_read(idle_comparison):
    for figure, label in (
        (phases_figure(idle_comparison.scenarios), "idle until epoch 2"),
        (shares_figure(idle_comparison.shares), "of idle until epoch 2"),
        (trend_figure(idle_comparison.trend), "idle until epoch 2: median"),
    ):
        check_that_it_can_be_read(figure)
        assert label in shown(figure)


def test_a_thin_bar_below_each_scenario_is_as_long_as_its_idle_seconds(idle_comparison):
    (axes,) = phases_figure(idle_comparison.scenarios).axes
    thin = [bar for bar in axes.patches if bar.get_facecolor()[:3] == to_rgb(IDLE_COLOUR)]
    assert [bar.get_width() for bar in thin] == [18.75, 14.0, 15.5]
    assert axes.get_xlim()[1] == 18.75
    tops = [bar.get_y() + bar.get_height() for bar in axes.patches if bar not in thin]
    assert min(bar.get_y() for bar in thin) == pytest.approx(min(tops))  # below, not upon it


def test_numbers_of_the_phases_fit_however_long_the_idle_seconds_are():
    idle = {"idle": Spread.of([40.0])}
    figure = phases_figure([s.model_copy(update=idle) for s in summaries(["legacy", "cold"])])
    check_that_it_can_be_read(figure)
    assert {"6.40", "15.5 s", "3.87 s"} <= set(shown(figure))


def test_the_trend_marks_where_idle_seconds_alone_were_worse(idle_comparison):
    figure = trend_figure(idle_comparison.trend)
    axes = next(axes for axes in figure.axes if axes.get_title(loc="left").startswith("cold"))
    lines = {line.get_marker(): line for line in axes.lines}
    assert lines["s"].get_ydata().tolist() == [5.5, 14.0]
    assert lines["D"].get_ydata().tolist() == [14.0]
    assert axes.get_title(loc="left") == "cold: latest 5.00 s, idle 14.0 s"
    assert axes.get_ylim()[1] > 14.0


def test_benchmarks_that_know_no_idle_seconds_have_no_line_of_them():
    points_of_both = [
        point.model_copy(update={"idle_s": None if i < 2 else 6.0})
        for i, point in enumerate(points(["cold"], [AT, AT + DAY_S, AT + 2 * DAY_S]))
    ]
    (line,) = [
        line for line in trend_figure(points_of_both).axes[0].lines if line.get_marker() == "s"
    ]
    assert line.get_ydata().tolist() == [6.0]
    assert "idle until epoch 2: median" not in shown(trend_figure(points_of_both[:2]))
