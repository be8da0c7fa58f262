import io
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from matplotlib.text import Text

from ups.startup.compare import PhaseSummary, ScenarioSummary, Share, Spread, TrendPoint, compare
from ups.startup.panel import DPI, PANEL, TEXT, WIDTH_IN, contrast, text_on, to_png, wrapped
from ups.startup.pictures import (
    EFFECT_COLOURS,
    OTHER_PHASE,
    PHASE_COLOURS,
    draw,
    phases_figure,
    shares_figure,
)
from ups.startup.stats import Difference
from ups.startup.trend import POINT, WORSE, trend_figure

WHITE_PAGE, DARK_PAGE = "#ffffff", "#0f1115"
SHOWN_PX = 900
NAMES = [
    *("legacy", "cold", "warm", "changed-config", "no-parallel_downloads", "no-gpu_encode"),
    *("no-parallel_encode", "no-reuse_cache", "preload-disk", "no-warm_up", "no-warm_start"),
]
LONG = [f"no-a_feature_with_a_name_that_goes_on_and_on_for_{n}" for n in ("ever", "long")]
WITHOUT_BREAK = ["x" * 60]
CRITICAL = {
    "queue": 0.4,
    "boot": 0.6,
    "download": 1.6,
    "cache": 1.1,
    "load": 0.12,
    "first step": 0.05,
}
AT = 1_795_475_000.0


def summary(name, scale=1.0, num=3):
    ttfs_s = scale * sum(CRITICAL.values())
    seconds = {phase: scale * s for phase, s in CRITICAL.items()}
    return ScenarioSummary(
        name=name,
        flow_run_ids=("a",),
        ttfs=Spread(median=ttfs_s, smallest=0.9 * ttfs_s, largest=1.1 * ttfs_s, num=num),
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
    seconds = Difference(value, low, high)
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
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= width, text
        assert box.y1 <= height, text
    for (one, box), (other, other_box) in itertools.combinations(found, 2):
        apart = (
            box.x1 <= other_box.x0
            or other_box.x1 <= box.x0
            or box.y1 <= other_box.y0
            or other_box.y1 <= box.y0
        )
        assert apart, f"{one} covers {other}"


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
    [
        (NAMES[:1], 1.0),
        (NAMES[:4], 0.001),
        (NAMES, 1.0),
        (LONG, 2000.0),
        (WITHOUT_BREAK, 1.0),
    ],
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
    figure = trend_figure(points(names, times, scale, worse=(1,)))
    check_that_it_can_be_read(figure)


def test_a_bar_is_as_long_as_the_median_ttfs_and_says_so():
    figure = phases_figure(summaries(["legacy", "cold"]))
    (axes,) = figure.axes
    lengths = {0: 0.0, 1: 0.0}
    for bar in axes.patches:
        lengths[round(bar.get_y() + bar.get_height() / 2)] += bar.get_width()
    assert lengths == pytest.approx({0: 4 * 3.87, 1: 3.87})
    assert {"legacy", "cold", "15.5 s", "3.87 s"} <= set(shown(figure))
    assert "critical path" in axes.get_xlabel()


def test_the_legend_names_the_phases_that_were_waited_for_and_no_others(benchmark, bases):
    comparison = compare(benchmark(), bases)
    names = shown(phases_figure(comparison.scenarios))
    legend = [name for name in names if name in PHASE_COLOURS]
    assert legend == ["boot", "download", "cache", "first step", "unaccounted"]  # not warm-up


def test_phases_too_thin_to_be_seen_are_one_bar_that_the_legend_names(benchmark, bases):
    (cold,) = compare(benchmark({"cold": (2.0,)}), bases).scenarios
    seconds = {"boot": 1.0, "validate": 0.003, "download": 2.0, "load": 0.004, "first step": 1.743}
    phases = tuple(
        PhaseSummary(phase=phase, seconds=Spread.of([s]), critical_s=s)
        for phase, s in seconds.items()
    )
    figure = phases_figure([cold.model_copy(update={"phases": phases})])
    assert {"boot", "download", "first step", "other: validate, load"} <= set(shown(figure))
    assert {"validate", "load"}.isdisjoint(shown(figure))
    (axes,) = figure.axes
    widths = [bar.get_width() for bar in axes.patches]
    assert widths == pytest.approx([1.0, 2.0, 1.743, 0.007])


def test_a_legend_too_long_for_a_row_takes_two_read_from_left_to_right():
    seconds = {**CRITICAL, "validate": 0.003, "warm-up": 0.3, "unaccounted": 0.4}
    phases = tuple(
        PhaseSummary(phase=phase, seconds=Spread.of([s]), critical_s=s)
        for phase, s in seconds.items()
    )
    figure = phases_figure([summary("cold").model_copy(update={"phases": phases})])
    check_that_it_can_be_read(figure)
    (legend,) = figure.legends
    at = {t.get_text(): t.get_window_extent() for t in legend.get_texts()}
    rows = sorted(at, key=lambda text: (-round(at[text].y0), at[text].x0))
    assert rows == [
        *("queue", "boot", "download", "warm-up", "cache"),
        *("load", "first step", "unaccounted", "other: validate"),
    ]


def test_a_phase_that_one_scenario_shows_keeps_its_colour_in_all():
    figure = phases_figure(summaries(["legacy", "cold"], 1.0))
    assert not [text for text in shown(figure) if text.startswith("other")]


def test_a_number_that_does_not_fit_into_its_bar_is_left_out():
    names = shown(phases_figure(summaries(["legacy"])))
    assert "6.40" in names  # download
    assert "0.200" not in names  # first step


def test_what_got_worse_is_marked_in_the_trend():
    figure = trend_figure(points(["cold"], [AT, AT + 60, AT + 120], worse=(2,)))
    (axes,) = figure.axes
    marked = [line for line in axes.lines if line.get_marker() == "D"]
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in marked] == [
        ([AT + 120], [4.2])
    ]
    assert marked[0].get_color() == WORSE
    assert "worse than its history" in shown(figure)
    assert "worse than its history" not in shown(trend_figure(points(["cold"], [AT])))


def test_a_trend_shows_each_median_with_its_spread():
    figure = trend_figure(points(["cold", "warm"], [AT, AT + 86_400]))
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "cold: latest 4.20 s",
        "warm: latest 4.20 s",
    ]
    axes = figure.axes[0]
    (medians,) = [line for line in axes.lines if line.get_marker() == "o"]
    assert list(zip(*medians.get_data(), strict=True)) == [(AT, 4.2), (AT + 86_400, 4.2)]
    spreads = [part.tolist() for part in axes.collections[0].get_segments()]
    assert spreads == [[[at, 4.0], [at, 4.5]] for at in (AT, AT + 86_400)]


def test_panels_of_the_trend_come_in_the_order_that_is_asked_for():
    figure = trend_figure(points(["warm", "gone", "cold"], [AT]), ["cold", "never ran", "warm"])
    titles = [axes.get_title(loc="left").split(":")[0] for axes in figure.axes]
    assert titles == ["cold", "warm", "gone"]


@pytest.mark.parametrize(
    ("times", "label"),
    [
        ([AT], "23:03\n23 Nov"),
        ([AT, AT + 60], "23:04:20\n23 Nov"),
        ([AT + 300 * i for i in range(12)], "23:10\n23 Nov"),
        ([AT + 86_400 * i for i in range(60)], "31 Dec\n2026"),
    ],
)
def test_the_axis_of_time_says_when(times, label):
    assert label in shown(trend_figure(points(["cold"], times)))


@given(
    first=st.integers(0, 2_000_000_000),
    gaps=st.lists(st.floats(1, 1e7), min_size=2, max_size=5),
)
@settings(max_examples=10, deadline=None)
def test_an_axis_of_time_has_two_to_ten_labels_in_view(first, gaps):
    times = [float(at) for at in itertools.accumulate(gaps, initial=first)]
    figure = trend_figure(points(["cold"], times))
    ticks = figure.axes[0].get_xticks()
    assert 2 <= len(ticks) <= 10
    assert times[0] <= ticks[0] <= ticks[-1] <= times[-1]


def test_a_share_is_a_bar_with_whiskers_and_the_colour_of_its_effect():
    figure = shares_figure(
        [share("a", 2.0, 1.0, 3.0), share("b", -1.0, -2.0, -0.5), share("c", 0.1, -1.0, 1.0)]
    )
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [2.0, -1.0, 0.1]
    effects = ["saves time", "costs time", "within the noise"]
    assert [bar.get_facecolor()[:3] for bar in axes.patches] == [
        to_rgb(EFFECT_COLOURS[effect]) for effect in effects
    ]
    ends = [tuple(line.get_xdata()) for line in axes.lines if line.get_marker() == "|"]
    assert ends == [(1.0, 3.0), (-2.0, -0.5), (-1.0, 1.0)]
    assert {"+2.00 s, +200 %", "−1.00 s, −100 %", *effects, "95 % interval"} <= set(shown(figure))


def test_one_run_has_no_whiskers():
    figure = shares_figure([share("a", 2.0)])
    assert "95 % interval" not in shown(figure)
    assert "one run only" in shown(figure)


def test_whiskers_are_in_view():
    (axes,) = shares_figure([share("a", 0.1, -3.0, 4.0)]).axes
    low, high = axes.get_xlim()
    assert low < -3.0
    assert high > 4.0


def test_only_pictures_with_something_to_show_are_drawn(benchmark, bases):
    record = benchmark({"legacy": (6.0,), "cold": (2.0,)})
    assert list(draw(compare(record, bases))) == ["phases"]
    first, second = points(["cold"], [AT]), points(["cold"], [AT, AT + 60])
    assert list(draw(compare(benchmark(), bases, (), first))) == ["phases", "shares"]
    assert list(draw(compare(benchmark(), bases, (), second))) == ["phases", "trend", "shares"]
    assert draw(compare(benchmark({}), bases)) == {}


def test_a_png_is_sharp_opaque_and_in_the_colours_of_its_phases():
    figure = phases_figure(summaries(["legacy", "cold"]))
    image = imread(io.BytesIO(to_png(figure)))
    assert image.shape == (int(figure.get_figheight() * DPI), int(WIDTH_IN * DPI), 4)
    assert image.shape[1] == 2 * SHOWN_PX
    assert (image[..., 3] == 1).all()
    for colour in (PANEL, *(PHASE_COLOURS[phase] for phase in CRITICAL)):
        is_it = (np.abs(image[..., :3] - to_rgb(colour)) < 0.01).all(axis=-1)
        assert is_it.sum() > 100, colour
    assert tuple(image[0, 0, :3]) == pytest.approx(to_rgb(PANEL), abs=0.01)


def test_contrast_is_that_of_the_guidelines():
    assert contrast("black", "white") == pytest.approx(21)
    assert contrast("#777777", "white") == pytest.approx(4.48, abs=0.01)
    assert contrast("white", "#777777") == contrast("#777777", "white")


def test_no_text_reads_well_on_both_pages_so_pictures_bring_their_own():
    greys = [f"#{level:02x}{level:02x}{level:02x}" for level in range(256)]
    assert max(min(contrast(g, WHITE_PAGE), contrast(g, DARK_PAGE)) for g in greys) < 4.5
    assert contrast(TEXT, PANEL) >= 7


@pytest.mark.parametrize(
    "colour", [*PHASE_COLOURS.values(), OTHER_PHASE, *EFFECT_COLOURS.values(), POINT, WORSE]
)
def test_shapes_stand_out_from_the_panel_and_numbers_from_the_shapes(colour):
    assert contrast(colour, PANEL) >= 3
    assert contrast(text_on(colour), colour) >= 4.5


def test_names_are_cut_behind_a_hyphen_or_underscore():
    assert wrapped("no-parallel_downloads") == "no-parallel_downloads"
    assert wrapped("no-a_feature_with_a_long_name", 12) == "no-a_\nfeature_\nwith_a_long_\nname"
    assert wrapped("x" * 30, 12) == "\n".join(["x" * 12, "x" * 12, "x" * 6])
