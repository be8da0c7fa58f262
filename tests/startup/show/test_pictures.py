import io
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from ups.runs import look
from ups.runs.look import PANEL, to_png
from ups.startup.judge.compare import (
    PhaseSummary,
    ScenarioSummary,
    Share,
    Spread,
    TrendPoint,
    compare,
)
from ups.startup.judge.stats import Interval
from ups.startup.show import pictures
from ups.startup.show.pictures import PHASE_COLOURS, phases_figure, shares_figure, trend_figure

WHITE_PAGE, DARK_PAGE = "#ffffff", "#0f1115"
SHOWN_PX = 900
NAMES = [
    *("legacy", "cold", "warm", "changed-config", "no-parallel_downloads", "no-gpu_encode"),
    *("no-parallel_encode", "no-reuse_cache", "preload-disk", "no-warm_up", "no-warm_start"),
]
LONG = [f"no-a_feature_with_a_name_that_goes_on_and_on_for_{n}" for n in ("ever", "long")]
WITHOUT_BREAK = ["x" * 60]
PHASE_NAMES = ("queue", "boot", "download", "cache", "load", "first step")
CRITICAL = dict(zip(PHASE_NAMES, (0.4, 0.6, 1.6, 1.1, 0.12, 0.05), strict=True))
AT = 1_795_475_000.0  # 23 Nov 2026, 23:03:20 UTC
DAY_S = 86_400
MARKED = [label for label, _, _ in pictures.MARKS]


def contrast(one, other):
    """Of two colours, 1 to 21; text needs 4.5, a shape 3. Source: WCAG 2.2."""

    def luminance(colour):
        linear = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def summary(name, scale=1.0, critical_s=CRITICAL):
    seconds = {phase: scale * s for phase, s in critical_s.items()}
    ttfs_s = sum(seconds.values())
    return ScenarioSummary(
        name=name,
        flow_run_ids=("a",),
        ttfs=Spread(median=ttfs_s, smallest=0.9 * ttfs_s, largest=1.1 * ttfs_s, num=3),
        phases=tuple(
            PhaseSummary(phase=phase, seconds=Spread.of([s]), critical_s=s)
            for phase, s in seconds.items()
        ),
        to_baseline=None,
        middle="a",
        path=(),
        next=None,
    )


def summaries(names, scale=1.0):
    return [summary(name, scale * (1 + 3 * (i == 0))) for i, name in enumerate(names)]


def share(name, value, low=math.nan, high=math.nan):
    seconds = Interval(value, low, high)
    return Share(scenario=name, base="cold", seconds=seconds, percent=100 * value)


def points(names, times, scale=1.0, worse=()):
    return [
        TrendPoint(
            scenario=name,
            at=at,
            ttfs=Spread.of([scale * s for s in (4.0, 4.2, 4.5)]),
            worse=i in worse,
        )
        for i, at in enumerate(times)
        for name in names
    ]


def texts(figure):
    """What can be read in a figure, tick labels in view included."""
    hidden = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            margin = 1e-6 * (high - low)
            axis.get_ticklabels()  # gives the ticks their places and texts
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if not low - margin <= tick.get_loc() <= high + margin:
                    hidden |= {tick.label1, tick.label2}
    found = [t for t in figure.findobj(Text) if t not in hidden and t.get_visible()]
    return [text for text in found if text.get_text().strip()]


def shown(figure):
    return [text.get_text() for text in texts(figure)]


def check_that_it_can_be_read(figure):
    figure.draw_without_rendering()  # sets the layout
    width, height = figure.bbox.width, figure.bbox.height
    found = [(text, text.get_window_extent()) for text in texts(figure)]
    for text, box in found:
        assert text.get_fontsize() / 72 * SHOWN_PX / figure.get_figwidth() >= 11, text
        assert 0 <= box.x0 < box.x1 <= width, text
        assert 0 <= box.y0 < box.y1 <= height, text
    for (one, box), (other, other_box) in itertools.combinations(found, 2):
        assert not box.overlaps(other_box), f"{one} covers {other}"


SHARES = {
    "eleven": [share(n, 0.3 * i - 0.7, 0.3 * i - 1.0, 0.3 * i) for i, n in enumerate(NAMES)],
    "long names": [share(n, 0.5, 0.2, 0.9) for n in (*LONG, *WITHOUT_BREAK)],
    "all slower": [share("a", -3.0, -4.0, -2.0), share("b", -0.1, -0.2, -0.05)],
    "one run": [share("a", 0.5), share("b", 0.0), share("c", -0.5)],
    "tiny": [share("a", 0.0004, 0.0002, 0.0009)],
    "large": [share("a", 4000.0, 3000.0, 7000.0), share("b", -2500.0, -9000.0, -10.0)],
}


@pytest.mark.parametrize(
    ("names", "scale"),
    [(NAMES[:1], 1.0), (NAMES[:4], 0.001), (NAMES, 1.0), (LONG, 2000.0), (WITHOUT_BREAK, 1.0)],
)
def test_labels_of_the_phases_cover_nothing_and_are_not_cut(names, scale):
    check_that_it_can_be_read(phases_figure(summaries(names, scale)))


@pytest.mark.parametrize("shares", SHARES.values(), ids=SHARES.keys())
def test_labels_of_the_shares_cover_nothing_and_are_not_cut(shares):
    check_that_it_can_be_read(shares_figure(shares))


@pytest.mark.parametrize(
    ("names", "num", "apart_s", "scale"),
    [
        (NAMES[:1], 1, 0, 1.0),
        (NAMES[:1], 60, 1, 1.0),
        (NAMES[:4], 2, 60, 0.001),
        (NAMES[:4], 60, 86_400, 1.0),
        (NAMES[:5], 3, 7, 2000.0),
        (NAMES, 2, 1e6, 1.0),
        (LONG + WITHOUT_BREAK, 2, 1e6, 1.0),
        (LONG + WITHOUT_BREAK + NAMES[:1], 3, 4000, 1.0),
    ],
)
def test_labels_of_the_trend_cover_nothing_and_are_not_cut(names, num, apart_s, scale):
    times = [AT + i * apart_s for i in range(num)]
    check_that_it_can_be_read(trend_figure(points(names, times, scale, worse=(1,))))


def test_a_bar_is_as_long_as_the_median_ttfs_and_says_so_where_a_number_fits():
    figure = phases_figure(summaries(["legacy", "cold"]))
    (axes,) = figure.axes
    lengths = {0: 0.0, 1: 0.0}
    for bar in axes.patches:
        lengths[round(bar.get_y() + bar.get_height() / 2)] += bar.get_width()
    assert lengths == pytest.approx({0: 4 * 3.87, 1: 3.87})
    names = shown(figure)
    assert {"legacy", "cold", "15.5 s", "3.87 s", "6.40"} <= set(names)  # 6.40 s of download
    assert {t.get_color() for t in axes.texts if t.get_text() == "6.40"} == {"black"}
    assert "0.200" not in names  # legacy's first step: its bar is too short for a number
    assert "critical path" in axes.get_xlabel()
    # A phase too thin in one bar keeps its colour there, as the other bar shows it.
    assert not [name for name in names if name.startswith("other")]


def test_the_legend_names_the_phases_that_were_waited_for_and_no_others(benchmark):
    names = shown(phases_figure(compare(benchmark()).scenarios))
    legend = [name for name in names if name in PHASE_COLOURS]
    assert legend == ["boot", "download", "cache", "first step", "unaccounted"]  # not warm-up


def test_phases_too_thin_to_be_seen_are_one_bar_that_the_legend_names():
    seconds = {"boot": 1.0, "validate": 0.003, "download": 2.0, "load": 0.004, "first step": 1.743}
    figure = phases_figure([summary("cold", critical_s=seconds)])
    assert {"boot", "download", "first step", "other: validate, load"} <= set(shown(figure))
    assert {"validate", "load"}.isdisjoint(shown(figure))
    (axes,) = figure.axes
    widths = [bar.get_width() for bar in axes.patches]
    assert widths == pytest.approx([1.0, 2.0, 1.743, 0.007])


def test_a_legend_too_long_for_a_row_takes_two_read_from_left_to_right():
    seconds = {**CRITICAL, "validate": 0.003, "warm-up": 0.3, "unaccounted": 0.4}
    figure = phases_figure([summary("cold", critical_s=seconds)])
    check_that_it_can_be_read(figure)
    (legend,) = figure.legends
    at = {t.get_text(): t.get_window_extent() for t in legend.get_texts()}
    rows = sorted(at, key=lambda text: (-round(at[text].y0), at[text].x0))
    assert rows == [
        *("queue", "boot", "download", "warm-up", "cache"),
        *("load", "first step", "unaccounted", "other: validate"),
    ]


def test_a_trend_shows_each_median_with_its_spread_and_marks_what_got_worse():
    figure = trend_figure(points(["cold"], [AT, AT + DAY_S, AT + 2 * DAY_S], worse=(2,)))
    (axes,) = figure.axes
    lines = {line.get_marker(): line for line in axes.lines if line.get_label() in MARKED}
    days = [AT / DAY_S + i for i in range(3)]
    medians, marked = (list(zip(*lines[m].get_data(), strict=True)) for m in ("o", "D"))
    assert medians + marked == [(day, 4.2) for day in days]
    assert len(marked) == 1
    assert lines["D"].get_color() == pictures.WORSE
    drawn = [line.get_xydata() for line in axes.lines[1:] if line.get_label() not in MARKED]
    spreads = np.concatenate(drawn).reshape(3, 3, 2)
    assert spreads[:, :2].tolist() == [[[day, 4.0], [day, 4.5]] for day in days]
    assert np.isnan(spreads[:, 2, 1]).all(), "each is a line of its own"
    assert "worse than its history" in shown(figure)
    assert "worse than its history" not in shown(trend_figure(points(["cold"], [AT])))


def test_a_trend_of_years_draws_as_many_things_as_one_of_days_and_once(monkeypatch):
    def num_drawn(num):
        (axes,) = trend_figure(points(["cold"], [AT + DAY_S * i for i in range(num)], 1, (2,))).axes
        return len(axes.lines), sum(len(found.get_paths()) for found in axes.collections)

    assert num_drawn(4) == num_drawn(1000) == (5, 0)
    drawn, draw = [], Figure.draw
    monkeypatch.setattr(Figure, "draw", lambda *a: (drawn.append(a), draw(*a)))
    png = to_png(trend_figure(points(["cold"], [AT, AT + DAY_S])))
    assert len(drawn) == 1
    assert imread(io.BytesIO(png)).shape[1] == look.WIDTH_IN * look.DPI


def test_panels_of_the_trend_come_in_the_order_that_is_asked_for_with_the_latest_figure():
    figure = trend_figure(points(["warm", "gone", "cold"], [AT]), ["cold", "never ran", "warm"])
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [f"{name}: latest 4.20 s" for name in ("cold", "warm", "gone")]


@pytest.mark.parametrize(
    ("times", "labels"),
    [
        ([AT], {"23:00", "23:10", "2026-Nov-23"}),
        ([AT, AT + 60], {"30", "40", "23:04", "2026-Nov-23 23:04"}),
        ([AT + 300 * i for i in range(12)], {"23:10", "23:50", "2026-Nov-24"}),
        ([AT + DAY_S * i for i in range(60)], {"Dec", "15", "Jan", "2027-Jan"}),
        ([AT + DAY_S * i for i in range(1000)], {"2027", "2028", "May"}),
    ],
)
def test_the_axis_of_time_says_when(times, labels):
    figure = trend_figure(points(["cold"], times))
    figure.draw_without_rendering()
    assert labels <= set(shown(figure))


@given(
    first=st.integers(0, 2_000_000_000), gaps=st.lists(st.floats(1, 1e7), min_size=2, max_size=5)
)
@settings(max_examples=10, deadline=None)
def test_an_axis_of_time_has_two_to_ten_labels_in_view(first, gaps):
    times = [float(at) for at in itertools.accumulate(gaps, initial=first)]
    axes = trend_figure(points(["cold"], times)).axes[0]
    low, high = axes.get_xlim()
    assert 2 <= sum(low <= tick <= high for tick in axes.get_xticks()) <= 10


def test_a_share_is_a_bar_with_whiskers_and_the_colour_of_its_effect():
    figure = shares_figure(
        [share("a", 2.0, 1.0, 3.0), share("b", -1.0, -2.0, -0.5), share("c", 0.1, -1.0, 1.0)]
    )
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [2.0, -1.0, 0.1]
    effects = ["saves time", "costs time", "within the noise"]
    assert [bar.get_facecolor()[:3] for bar in axes.patches] == [
        to_rgb(pictures.EFFECT_COLOURS[effect]) for effect in effects
    ]
    (whiskers,) = axes.collections
    ends = [tuple(part[:, 0]) for part in whiskers.get_segments()]
    assert ends == [(1.0, 3.0), (-2.0, -0.5), (-1.0, 1.0)]
    assert {"+2.00 s, +200 %", "−1.00 s, −100 %", *effects, "95 % interval"} <= set(shown(figure))


def test_whiskers_are_in_view_and_one_run_has_none():
    (axes,) = shares_figure([share("a", 0.1, -3.0, 4.0)]).axes
    low, high = axes.get_xlim()
    assert low < -3.0 < 4.0 < high
    texts_of_one_run = shown(shares_figure([share("a", 2.0)]))
    assert "one run only" in texts_of_one_run
    assert "95 % interval" not in texts_of_one_run


def test_only_pictures_with_something_to_show_are_drawn(benchmark):
    record = benchmark({"legacy": (6.0,), "cold": (2.0,)})
    assert list(pictures.draw(compare(record))) == ["phases"]
    first, second = points(["cold"], [AT]), points(["cold"], [AT, AT + 60])
    comparison = compare(benchmark())
    for trend, names in (first, ["phases", "shares"]), (second, ["phases", "trend", "shares"]):
        assert list(pictures.draw(comparison.model_copy(update={"trend": trend}))) == names
    assert pictures.draw(compare(benchmark({}))) == {}


def test_a_png_is_sharp_opaque_and_in_the_colours_of_its_phases():
    figure = phases_figure(summaries(["legacy", "cold"]))
    image = imread(io.BytesIO(pictures.to_png(figure)))
    assert image.shape == (int(figure.get_figheight() * look.DPI), 2 * SHOWN_PX, 4)
    assert (image[..., 3] == 1).all()
    for colour in (PANEL, *(PHASE_COLOURS[phase] for phase in CRITICAL)):
        is_it = (np.abs(image[..., :3] - to_rgb(colour)) < 0.01).all(axis=-1)
        assert is_it.sum() > 100, colour
    assert tuple(image[0, 0, :3]) == pytest.approx(to_rgb(PANEL), abs=0.01)


def test_no_text_reads_well_on_both_pages_so_pictures_bring_their_own():
    assert contrast("black", "white") == pytest.approx(21)  # as the guidelines have it
    assert contrast("#777777", "white") == pytest.approx(4.48, abs=0.01)
    greys = [f"#{level:02x}{level:02x}{level:02x}" for level in range(256)]
    assert max(min(contrast(g, WHITE_PAGE), contrast(g, DARK_PAGE)) for g in greys) < 4.5
    assert contrast(look.TEXT, PANEL) >= 7


@pytest.mark.parametrize(
    "colour",
    [
        *PHASE_COLOURS.values(),
        pictures.OTHER_PHASE,
        *pictures.EFFECT_COLOURS.values(),
        pictures.POINT,
        pictures.WORSE,
        pictures.IDLE_COLOUR,
    ],
)
def test_shapes_stand_out_from_the_panel_and_numbers_from_the_shapes(colour):
    assert contrast(colour, PANEL) >= 3
    assert contrast("black", colour) >= 4.5
