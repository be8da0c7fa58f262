"""The table: what its cells say, and what stays from an earlier run."""

import json

import pytest

from speed.harness import Comparison, Result
from speed.report import Report, cells, number, to_markdown


@pytest.fixture
def row():
    return Comparison(
        phase="load into RAM",
        section="load",
        results=[
            Result("ours", "ours", [0.2, 0.1, 0.3], {"CPU s/GB": [1.0, 2.0, 3.0]}),
            Result("slow", "peer", [0.4]),
            Result("absent", "peer", failed="WorkerError: not installed"),
            Result("raw", "bound", [0.19, 0.17, 0.18]),
        ],
        targets={"slow": 1.5, "raw": 0.95, "absent": 1},
        notes=["A note."],
    )


def test_cells_show_medians_spread_ratios_and_whether_targets_are_reached(row):
    assert cells(row) == (
        "load into RAM",
        "s",
        "0.200 [0.100–0.300] (CPU s/GB 2.00)",
        "slow 0.400 (one run); absent failed (WorkerError: not installed)",
        "raw 0.180 [0.170–0.190]",
        "slow 2.00×; absent –; raw 90%",
        "slow ≥ 1.5×: reached; raw ≥ 95%: missed; absent ≥ 1×: not measured",
    )


def test_markdown_has_a_table_a_section_and_each_note_once(row):
    other = Comparison("build", [Result("ours", "ours", [1.0])], section="cache")
    text = to_markdown(Report("cpu", {"cores": 2}, {}, [row, row, other]))
    assert text.count("| load into RAM | s |") == 2
    assert text.count("- A note.") == 1
    assert "## cache" in text
    assert "- cores: 2" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1234.5, "1,234"), (12.345, "12.3"), (0.5, "0.500"), (1e-4, "0.0001")],
)
def test_numbers_have_three_digits(value, text):
    assert number(value) == text


def test_a_section_measured_anew_replaces_its_rows_and_no_others(row, tmp_path):
    other = Comparison("build", [Result("ours", "ours", [1.0])])
    report = Report("cpu", {"cores": 2})
    report.add("load", [row], {"commit": "a"})
    report.add("cache", [other], {"commit": "a"})
    report.save(tmp_path, ["cache", "load"])

    again = Report.load_or_new(tmp_path, "cpu", {"cores": 2})
    again.add("cache", [other], {"commit": "b"})
    path = again.save(tmp_path, ["cache", "load"])
    record = json.loads(path.read_text())
    assert [c["section"] for c in record["comparisons"]] == ["cache", "load"]
    assert {k: v["commit"] for k, v in record["measured"].items()} == {"cache": "b", "load": "a"}
    assert Report.load_or_new(tmp_path, "other", {}).comparisons == []
