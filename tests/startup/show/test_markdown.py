import base64
import re

import pytest

from tests.startup.conftest import with_idle
from ups.runs.critical_path import Step
from ups.startup.judge.compare import OtherLoad, Spread, TrendPoint, compare
from ups.startup.judge.criteria import Criterion
from ups.startup.judge.limits import Thresholds
from ups.startup.judge.stats import Interval, Ratio
from ups.startup.judge.verdict import Verdict, judge
from ups.startup.show import wording
from ups.startup.show.markdown import to_markdown


@pytest.fixture
def render(benchmark):
    """`render(record, pictures, verdicts=…)`: the Markdown of a benchmark, by default of three."""

    def _render(record=None, pictures=None, **more):
        comparison = compare(record or benchmark()).model_copy(update=more)
        return to_markdown(comparison, pictures or {}, lambda id: f"http://ui/runs/{id}")

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


def verdict_of(scenario, kind="unchanged", **times):
    times = {"before_s": 9.5, "after_s": 9.75, "limit_s": 15.2, **times}
    return Verdict(scenario=scenario, kind=kind, num_before=9, num_now=3, **times)


def too_few(scenario, num_before=2):
    return Verdict(
        scenario=scenario, kind="no verdict yet", num_before=num_before, num_now=3, least_runs=5
    )


def test_what_got_worse_and_by_how_much_stands_first(render, benchmark):
    before = benchmark({"cold": (2.0, 2.0) * 10}).runs  # 4.75 s each
    strict = Thresholds(least_s=0, relative=0, between=0)
    worse = judge("cold", benchmark().runs, [before], strict)
    lines = render(verdicts=[verdict_of("legacy"), worse]).splitlines()
    assert lines[0] == (
        "# Worse: cold +5 % (4.75 s → 5.00 s); unchanged: legacy (worse beyond 15.2 s)"
    )
    assert lines[2] == f"- {worse.message}"
    assert "download 2.00 -> 2.25 s" in lines[2]


FOUR = [verdict_of(name) for name in "abcd"]
HEADLINES = {
    "No verdict yet: legacy, cold (2 of 5 runs before)": [too_few("legacy", 3), too_few("cold")],
    "No verdict yet: 4 scenarios (2 of 5 runs before)": [too_few(name) for name in "abcd"],
    "Unchanged: 4 scenarios (worse beyond +60 %)": FOUR,
    "Unchanged: 5 scenarios (worse beyond +60 % to +100 %)": [verdict_of("e", limit_s=19), *FOUR],
    "Not compared with the history": [],
}


@pytest.mark.parametrize(("headline", "verdicts"), HEADLINES.items())
def test_a_headline_counts_what_it_cannot_name_and_says_how_far_it_can_tell(
    render, headline, verdicts
):
    assert render(verdicts=verdicts).splitlines()[0] == f"# {headline}"


def test_a_verdict_says_beyond_what_whichever_way_it_went(benchmark):
    assert wording.verdict(compare(benchmark()), "cold") == "–"
    for kind, text in {
        "worse": "worse beyond 5.00 s",
        "improved": "improved below 5.00 s",
        "unchanged": "unchanged, worse beyond 5.00 s",
    }.items():
        comparison = compare(benchmark(verdicts=[verdict_of("cold", kind, limit_s=5.0)]))
        assert wording.verdict(comparison, "cold") == text


def test_the_comparison_has_a_row_per_scenario_with_a_link_to_each_run(render):
    markdown = render(verdicts=[verdict_of("legacy"), too_few("cold")])
    names, rows = table_after(markdown, "# No verdict yet")
    assert names == [*("scenario", "time to first step", "legacy takes", "against history", "runs")]
    assert rows[0][:4] == [*("legacy", "9.75 s [8.75–11.8]", "–", "unchanged, worse beyond 15.2 s")]
    assert rows[1][:2] == ["cold", "5.00 s [4.75–5.25]"]
    assert re.fullmatch(r"1\.95× \[1\.\d\d–2\.\d\d\]", rows[1][2])
    assert rows[1][3:] == [
        "no verdict yet: 2 of 5 runs before",
        " ".join(f"[{n + 1}](http://ui/runs/cold/{n})" for n in range(3)),
    ]
    assert rows[2][3] == "–"


def test_each_scenario_has_its_phases_bounds_and_critical_path(render):
    markdown = render()
    names, rows = table_after(markdown, "### cold: 5.00 s [4.75–5.25]")
    assert names[:3] == ["phase", "median", "on the critical path"]
    found = {row[0]: dict(zip(names, row, strict=True)) for row in rows}
    assert found["download"]["median"] == "2.25 s [2.00–2.50]"
    assert found["download"]["bound"] == "1.50 s, taken 1.50×"
    assert (
        "\n- boot: a process | starts; no bound measured\n- download: network: 420 MB\n" in markdown
    )
    assert "\n- cache: no bound measured\n" in markdown
    assert "- unaccounted:" not in markdown
    assert found["warm-up"]["on the critical path"] == "–"
    assert found["unaccounted"]["on the critical path"] == "0.250 s"
    for line in (
        "- **Critical path** of the [run at the median](http://ui/runs/cold/2): boot [x] 1.00 s → "
        "download [x] 2.25 s → cache [x] 1.00 s → unaccounted 0.250 s → first step [x] 0.500 s",
        "- **Work on next** boot: 1.00 s of the critical path, no bound measured; then download: "
        "2.25 s of the critical path, 0.750 s above its bound of 1.50 s",
        "- **Work on next** download: 7.00 s of the critical path, 5.50 s above its bound of "
        "1.50 s",
    ):
        assert line in markdown.splitlines()


def test_the_text_of_a_path_joins_the_parts_of_a_span_and_leaves_out_what_is_brief():
    lasting = [("boot", 0.0, 2.0), ("warm-up", 2.0, 2.2), ("x", 2.2, 2.229), ("warm-up", 2.229, 3)]
    steps = [Step(phase=name, name=name, start=start, end=end) for name, start, end in lasting]
    assert wording.path(steps) == "boot 2.00 s → warm-up 0.971 s"


def test_columns_that_say_nothing_are_left_out(render, benchmark):
    names, _ = table_after(render(), "### legacy")
    assert "legacy takes" not in names
    bare = [run.model_copy(update={"bounds_s": {}}) for run in benchmark().runs]
    names, _ = table_after(render(benchmark(runs=tuple(bare))), "### cold")
    assert "bound" not in names


def test_a_bar_in_a_cell_does_not_split_it(render):
    asked = Criterion(source="plan", asks="a | b", target="< 1 s", measured="2 s", is_met=False)
    markdown = render(criteria=(asked,))
    names, (row,) = table_after(markdown, "## What is asked of it")
    assert len(row) == len(names)
    assert row == ["plan", "a \\| b", "&lt; 1 s", "2 s", "✗"]
    assert "- boot: a process | starts" in markdown


def test_each_optimisation_has_its_share(render):
    names, (row,) = table_after(render(), "## What each optimisation is worth")
    grows = "without it time to first step grows by"
    assert names == ["optimisation", "in scenario", grows, "in percent", "what it does"]
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


def test_what_the_times_depend_on_is_said(render):
    markdown = render()
    text = markdown[markdown.index("## How it was measured") :]
    for fact in (
        "benchmark `b1`, 2026-11-23 23:03 UTC in [this flow run](http://ui/runs/benchmark-run)",
        "machine `m1`: processor AMD EPYC, cores 2, GPU not known",
        "versions: torch 2.13.0+cpu",
        "commit `2cf4672a1b2c-dirty`",
        "settings: num_trajectories 256",
    ):
        assert fact in text


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
    assert wording.difference(Interval(-0.5, -1.0, 0.25)) == "−0.500 s [−1.00 to +0.250]"
    assert wording.difference(None) == "–"
    assert [wording.percent(value) for value in (30.2, -4.6, 0.3)] == ["+30 %", "−5 %", "0 %"]


def test_the_artifact_warns_where_something_else_was_running(render):
    other_load = OtherLoad(num_runs=1, of_runs=2, most_cores=1.31)
    warning = "Something else was running before 1 of 2 runs (up to 1.3 cores): these times may "
    assert f"**{warning}" in render(other_load=other_load).split("|")[0]
    assert "Something else" not in render()


def test_idle_seconds_stand_beside_ttfs_in_the_tables_and_in_the_headline(render, benchmark):
    worse = verdict_of("cold", "worse", figure="idle", before_s=4.0, after_s=6.0, limit_s=5.0)
    markdown = render(with_idle(benchmark()), verdicts=[verdict_of("cold"), worse])
    assert markdown.startswith(
        "# Worse: cold idle +50 % (4.00 s → 6.00 s); unchanged: cold (worse beyond 15.2 s)\n"
    )
    names, rows = table_after(markdown, "# Worse")
    assert names[1:3] == ["time to first step", "idle until epoch 2"]
    assert rows[1][1:3] == ["5.00 s [4.75–5.25]", "5.50 s [5.25–5.75]"]
    assert rows[1][4] == "unchanged, worse beyond 15.2 s; idle: worse beyond 5.00 s"
    alike = verdict_of("cold", figure="idle", limit_s=17.0)
    comparison = compare(benchmark(verdicts=[verdict_of("cold"), alike]))
    assert wording.verdict(comparison, "cold") == "unchanged, worse beyond 15.2 s, idle 17.0 s"
    names, rows = table_after(markdown, "## What each optimisation is worth")
    assert rows[0][names.index("idle grows by")].startswith("+1.50 s [")
    names, rows = table_after(markdown, "## What is asked of it")
    (factor,) = [row for row in rows if row[1].endswith("idle until epoch 2")]
    assert factor[3].startswith("1.86× [")  # 10.25 s over 5.50 s


def test_a_figure_without_a_verdict_yet_is_named_where_the_other_has_one(render):
    few = Verdict(
        scenario="cold", figure="idle", kind="no verdict yet", num_before=0, num_now=3, least_runs=5
    )
    of_ttfs, line = verdict_of("cold", limit_s=5.0), "No verdict yet: cold{} (0 of 5 runs before)"
    found = render(verdicts=[of_ttfs, few]).splitlines()[0]
    assert found == f"# {line.format(' idle')}; unchanged: cold (worse beyond 5.00 s)"
    found = render(verdicts=[too_few("cold", 0), few])
    assert found.splitlines()[0] == f"# {line.format('')}"
    assert "| no verdict yet: 0 of 5 runs before |" in found
    found = render(verdicts=[too_few("cold", 3), few])  # the history began before idle seconds
    assert found.splitlines()[0] == "# No verdict yet: cold (3 of 5 runs before)"
    cell = "no verdict yet: 3 of 5 runs before; idle: no verdict yet: 0 of 5 runs before"
    assert f"| {cell} |" in found
