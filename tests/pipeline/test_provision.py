"""The phases of a rented machine: taken by the first run, seen again by its retry, by no other."""

import pytest

from ups.pipeline.provision import VARIABLE, claim, note
from ups.runs.breakdown import Span, tabulate_provision
from ups.runs.gantt import draw_gantt


@pytest.fixture
def noted(tmp_path, monkeypatch):
    path = tmp_path / "state" / "provision"
    path.parent.mkdir()
    path.write_text("clone 1795475000.250000000 1795475002.5\n")
    note(path, "install", 1795475002.5, 1795475040)
    monkeypatch.setenv(VARIABLE, str(path))
    return path


def test_the_first_run_takes_the_phases_its_retry_finds_them_again_and_others_none(
    noted, tmp_path, monkeypatch
):
    first, second = tmp_path, tmp_path / "state"
    spans = claim(first)
    assert [(s.phase, s.name, s.seconds) for s in spans] == [
        ("provision/clone", "clone", 2.25),
        ("provision/install", "install", 37.5),
    ]
    assert claim(second) == ()
    assert claim(first) == spans
    assert not noted.exists()
    monkeypatch.delenv(VARIABLE)  # as on a machine that was not rented
    assert claim(second) == ()


@pytest.mark.parametrize("line", ["clone 1 x", "clone 1", "a b 1 2", None])
def test_lines_that_make_no_sense_or_a_folder_that_is_gone_cost_the_phases_alone(
    noted, tmp_path, line, caplog
):
    if line is not None:
        noted.write_text(f"{line}\n")
    assert claim(tmp_path / "missing" if line is None else tmp_path) == ()
    why = "left out" if line is None else f"found {line!r}, expected `phase start end`"
    assert why in caplog.text


def test_phases_that_overlap_are_noted_as_they_end_and_read_by_their_start(noted, tmp_path):
    note(noted, "deploy", 1795475041, 1795475048)
    note(noted, "worker", 1795475040, 1795475050)
    assert [span.name for span in claim(tmp_path)] == ["clone", "install", "worker", "deploy"]


def test_the_rows_have_what_all_cover_and_no_share_of_the_time_to_the_first_step():
    spans = [
        Span(phase="provision/clone", name="clone", start=0, end=2),
        Span(phase="provision/worker", name="worker", start=2, end=7),
        Span(phase="provision/deploy", name="deploy", start=3, end=9),
    ]
    rows = tabulate_provision(spans)
    assert [(row.phase, row.seconds, row.share) for row in rows] == [
        ("provision/clone", 2, None),
        ("provision/worker", 5, None),
        ("provision/deploy", 6, None),
        ("provision", 9, None),
    ]
    assert tabulate_provision(()) == ()
    last = tabulate_provision(spans, first_step_at=12.5)[-1]
    assert (last.phase, last.seconds, last.share) == ("provision/to_first_step", 12.5, None)


def test_the_picture_grows_by_the_phases_before_the_trigger():
    spans = [Span(phase="queue", name="queue", start=10, end=11)]
    before = [Span(phase="provision/clone", name="clone", start=0, end=9)]
    heights = [
        int.from_bytes(draw_gantt(spans, 10, 12, provision)[20:24], "big")
        for provision in ((), before)
    ]
    assert heights[1] > heights[0] + 100  # pixels
