import base64
import io
import re

import pytest
from rich.console import Console

from ups.startup import wording
from ups.startup.compare import Spread, TrendPoint, compare, diff
from ups.startup.criteria import Criterion
from ups.startup.critical_path import Step
from ups.startup.limits import Thresholds
from ups.startup.markdown import to_markdown
from ups.startup.stats import Difference, Ratio
from ups.startup.tables import show, show_changes
from ups.startup.verdict import Verdict, judge


def link(flow_run_id):
    return f"http://ui/runs/{flow_run_id}"


@pytest.fixture
def render(benchmark, bases):
    def _render(record=None, pictures=None, **more):
        comparison = compare(record or benchmark(), bases, **more)
        return to_markdown(comparison, pictures or {}, link)

    return _render


def table_after(markdown, heading):
    """The rows of the first table below a heading, as lists of cells."""
    lines = markdown[markdown.index(heading) :].splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows[0], rows[2:]


def worse(benchmark):
    """`cold` as it is, after twenty runs that took 4.75 s."""
    before = benchmark({"cold": (2.0, 2.0) * 10}).runs
    strict = Thresholds(least_s=0, relative=0, between=0)
    return judge("cold", benchmark().runs, [before], strict)


def too_few(scenario, num_before=2):
    return Verdict(
        scenario=scenario, kind="no verdict yet", num_before=num_before, num_now=3, least_runs=5
    )


def unchanged(scenario):
    times = {"before_s": 9.5, "after_s": 9.75, "limit_s": 15.2}
    return Verdict(scenario=scenario, kind="unchanged", num_before=9, num_now=3, **times)


def test_what_got_worse_and_by_how_much_stands_first(render, benchmark):
    verdict = worse(benchmark)
    markdown = render(verdicts=[unchanged("legacy"), verdict])
    first, _, second = markdown.splitlines()[:3]
    assert first == (
        "# Worse: cold +5 % (4.75 s → 5.00 s); unchanged: legacy (worse beyond 15.2 s)"
    )
    assert second == f"- {verdict.message}"
    assert "download 2.00 -> 2.25 s" in second


def test_too_little_history_says_how_many_runs_of_how_many(render):
    verdicts = [too_few("legacy", 3), too_few("cold", 2)]
    headline = render(verdicts=verdicts).splitlines()[0]
    assert headline == "# No verdict yet: legacy, cold (2 of 5 runs before)"


def test_a_headline_counts_what_it_cannot_name(render):
    verdicts = [too_few(name) for name in "abcd"]
    assert render(verdicts=verdicts).splitlines()[0] == (
        "# No verdict yet: 4 scenarios (2 of 5 runs before)"
    )
    assert render(verdicts=[unchanged(name) for name in "abcd"]).splitlines()[0] == (
        "# Unchanged: 4 scenarios (worse beyond +60 %)"
    )
    other = unchanged("e").model_copy(update={"limit_s": 19.0})
    verdicts = [other, *(unchanged(name) for name in "abcd")]
    assert render(verdicts=verdicts).splitlines()[0] == (
        "# Unchanged: 5 scenarios (worse beyond +60 % to +100 %)"
    )
    assert render().splitlines()[0] == "# Not compared with the history"


def test_a_verdict_says_beyond_what_whichever_way_it_went(benchmark, bases):
    told = {
        "worse": "worse beyond 5.00 s",
        "improved": "improved below 5.00 s",
        "unchanged": "unchanged, worse beyond 5.00 s",
    }
    for kind, text in told.items():
        verdict = Verdict(scenario="cold", kind=kind, limit_s=5.0, num_before=9, num_now=3)
        assert wording.verdict(compare(benchmark(), bases), "cold") == "–"
        times = {"before_s": 4.0, "after_s": 4.0}
        comparison = compare(benchmark(), bases, [verdict.model_copy(update=times)])
        assert wording.verdict(comparison, "cold") == text


def test_the_comparison_has_a_row_per_scenario_with_a_link_to_each_run(render):
    markdown = render(verdicts=[unchanged("legacy"), too_few("cold")])
    names, rows = table_after(markdown, "# No verdict yet")
    assert names == [
        "scenario",
        "time to first step",
        "legacy takes",
        "against history",
        "work on next",
        "runs",
    ]
    assert rows[0][:5] == [
        "legacy",
        "9.75 s [8.75–11.8]",
        "–",
        "unchanged, worse beyond 15.2 s",
        "download",
    ]
    assert rows[1][:2] == ["cold", "5.00 s [4.75–5.25]"]
    assert re.fullmatch(r"1\.95× \[1\.\d\d–2\.\d\d\]", rows[1][2])
    assert rows[1][4] == "boot, download"
    assert rows[1][3] == "no verdict yet: 2 of 5 runs before"
    assert rows[1][5] == (
        "[1](http://ui/runs/cold/0) [2](http://ui/runs/cold/1) [3](http://ui/runs/cold/2)"
    )
    assert rows[2][3] == "–"


def test_each_scenario_has_its_phases_bounds_and_critical_path(render):
    markdown = render()
    names, rows = table_after(markdown, "### cold: 5.00 s [4.75–5.25]")
    assert names[:3] == ["phase", "median", "on the critical path"]
    found = {row[0]: dict(zip(names, row, strict=True)) for row in rows}
    assert found["download"]["median"] == "2.25 s [2.00–2.50]"
    assert found["download"]["bound"] == "1.50 s, taken 1.50×"
    assert "\n- download: network: 420 MB\n" in markdown
    assert "\n- boot: a process | starts; no bound measured\n" in markdown
    assert "\n- cache: no bound measured\n" in markdown
    assert "- unaccounted:" not in markdown
    assert found["warm-up"]["on the critical path"] == "–"
    assert found["unaccounted"]["on the critical path"] == "0.250 s"
    assert (
        "- **Critical path** of the [run at the median](http://ui/runs/cold/2): boot [x] 1.00 s → "
        "download [x] 2.25 s → cache [x] 1.00 s → unaccounted 0.250 s → first step [x] 0.500 s"
    ) in markdown
    assert (
        "- **Work on next** boot: 1.00 s of the critical path, no bound measured; then download: "
        "2.25 s of the critical path, 0.750 s above its bound of 1.50 s\n"
    ) in markdown
    assert (
        "- **Work on next** download: 7.00 s of the critical path, 5.50 s above its bound of 1.50 s"
    ) in markdown


def test_parts_of_one_span_are_told_as_one():
    lasting = [("boot", 0.0, 2.0), ("warm-up", 2.0, 2.2), ("x", 2.2, 2.201), ("warm-up", 2.201, 3)]
    steps = [Step(phase=name, name=name, start=start, end=end) for name, start, end in lasting]
    assert wording.path(steps) == "boot 2.00 s → warm-up 0.999 s"


def test_what_is_brief_is_left_out_of_the_text_of_a_path():
    lasting = [("boot", 0.0, 2.0), ("download", 2.0, 2.019), ("cache", 2.019, 3.0)]
    steps = [Step(phase=name, name=name, start=start, end=end) for name, start, end in lasting]
    assert wording.path(steps) == "boot 2.00 s → cache 0.981 s"


def test_columns_that_say_nothing_are_left_out(render, benchmark):
    names, _ = table_after(render(), "### legacy")
    assert "legacy takes" not in names
    bare = [run.model_copy(update={"bounds_s": {}}) for run in benchmark().runs]
    names, _ = table_after(render(benchmark(runs=tuple(bare))), "### cold")
    assert "bound" not in names


def test_a_bar_in_a_cell_does_not_split_it(benchmark, bases):
    asked = Criterion(source="plan", asks="a | b", target="< 1 s", measured="2 s", is_met=False)
    markdown = to_markdown(compare(benchmark(), bases), {}, str, (asked,))
    names, (row,) = table_after(markdown, "## What is asked of it")
    assert len(row) == len(names)
    assert row == ["plan", "a \\| b", "&lt; 1 s", "2 s", "✗"]
    assert "- boot: a process | starts" in markdown


def test_each_optimisation_has_its_share(render):
    names, (row,) = table_after(render(), "## What each optimisation is worth")
    assert names == [
        "optimisation",
        "in scenario",
        "without it time to first step grows by",
        "in percent",
        "what it does",
    ]
    assert row[:2] == ["parallel_downloads", "cold"]
    assert re.fullmatch(r"\+1\.50 s \[\+1\.\d\d to \+[12]\.\d\d\]", row[2])
    assert row[3:] == ["+30 %", "saves time"]


def test_pictures_are_embedded_byte_by_byte(render):
    point = TrendPoint(scenario="cold", at=1e9, ttfs=Spread.of([5.0]))
    pictures = {"phases": b"\x89PNG 1", "trend": b"\x89PNG 2", "shares": b"\x89PNG 3"}
    markdown = render(pictures=pictures, trend=[point])
    found = re.findall(r"!\[([^]]+)\]\(data:image/png;base64,([^)]+)\)", markdown)
    assert {base64.b64decode(data) for _, data in found} == set(pictures.values())
    assert "<svg" not in markdown
    assert "## Trend" in markdown
    without = render(trend=[point])
    assert "![" not in without
    assert "## Trend" not in without


def test_one_run_has_neither_spread_nor_interval(render, benchmark):
    record = benchmark({"legacy": (6.0,), "cold": (2.0,), "no-parallel_downloads": (4.0,)})
    markdown = render(record)
    _, rows = table_after(markdown, "# Not compared")
    assert [row[1:3] for row in rows] == [["8.75 s", "–"], ["4.75 s", "1.84×"], ["6.75 s", "1.30×"]]
    _, (share,) = table_after(markdown, "## What each optimisation")
    assert share[2:] == ["+2.00 s", "+42 %", "one run only"]
    assert "nan" not in markdown


def test_what_the_times_depend_on_is_told(render):
    told = render()
    told = told[told.index("## How it was measured") :]
    assert (
        "benchmark `b1`, 2026-11-23 23:03 UTC in [this flow run](http://ui/runs/benchmark-run)"
        in told
    )
    assert "machine `m1`: processor AMD EPYC, cores 2, GPU not known" in told
    assert "versions: torch 2.13.0+cpu" in told
    assert "commit `2cf4672a1b2c-dirty`" in told
    assert "settings: num_trajectories 256" in told


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0"),
        (0.00001, "<0.0001"),
        (0.0086, "0.0086"),
        (0.0314, "0.031"),
        (0.9996, "1.00"),
        (4.207, "4.21"),
        (12.34, "12.3"),
        (99.96, "100"),
        (1240.4, "1,240"),
        (-0.5, "−0.500"),
    ],
)
def test_seconds_show_the_digits_that_can_matter(seconds, text):
    assert wording.figure(seconds) == text


def test_ratios_and_differences_show_their_interval():
    assert wording.times(Ratio(3.125, 2.5, 12.25)) == "3.12× [2.50–12.2]"
    assert wording.difference(Difference(-0.5, -1.0, 0.25)) == "−0.500 s [−1.00 to +0.250]"
    assert wording.difference(None) == "–"
    assert [wording.percent(value) for value in (30.2, -4.6, 0.3)] == ["+30 %", "−5 %", "0 %"]


@pytest.fixture
def console():
    return Console(width=160, record=True, file=io.StringIO(), highlight=False)


def test_a_terminal_shows_the_same_comparison(benchmark, bases, console):
    verdict = worse(benchmark)
    show(compare(benchmark(), bases, [verdict]), console)
    text = console.export_text()
    assert text.startswith("Worse: cold +5 % (4.75 s → 5.00 s)\n")
    assert verdict.message in text
    for cells in (
        ["cold", "5.00 s [4.75–5.25]", "worse beyond 4.75 s", "boot, download"],
        ["download", "2.25 s [2.00–2.50]", "1.50 s, taken 1.50×", "network: 420 MB"],
        ["parallel_downloads", "cold", "+1.50 s", "+30 %", "saves time"],
    ):
        pattern = ".*".join(re.escape(cell) for cell in cells)
        assert re.search(pattern, text), cells
    assert "critical path  boot [x] 1.00 s → download [x] 2.25 s" in text
    assert "machine    processor AMD EPYC, cores 2, GPU not known" in text


def test_artifact_and_terminal_warn_where_something_else_was_running(benchmark, bases, console):
    record = benchmark({"cold": (2.0, 2.5)})
    busy = record.runs[0].model_copy(update={"busy_cores": 1.31})
    comparison = compare(record.model_copy(update={"runs": (busy, record.runs[1])}), bases)
    warning = "Something else was running before 1 of 2 runs (up to 1.3 cores): these times may "
    assert f"**{warning}" in to_markdown(comparison, {}, link).split("|")[0]
    show(comparison, console)
    assert warning in console.export_text()
    assert "Something else" not in to_markdown(compare(record, bases), {}, link)


def test_a_terminal_shows_what_changed_and_why_it_may_mean_nothing(benchmark, console):
    after = benchmark({"cold": (4.0, 4.5, 4.25)}, id="b2", machine_id="m2")
    show_changes(diff(benchmark({"cold": (2.0, 2.5, 2.25)}), after), console)
    text = console.export_text()
    assert "Not comparable: they ran on different machines" in text
    for cells in (
        ["cold", "time to first step", "5.00 s [4.75–5.25]", "7.00 s [6.75–7.25]", "+2.00 s"],
        ["cold", "boot", "1.00 s", "1.00 s", "0 s"],
    ):
        assert re.search(".*".join(re.escape(cell) for cell in cells), text), cells
