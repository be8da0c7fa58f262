"""The breakdown of a startup: its arithmetic, its file through the versions, its tables."""

import json

import pytest

from ups.machine.gpu import FIRST_EPOCH, GpuUse
from ups.runs.breakdown import Breakdown, ProblemFigures, Span, covered, tabulate
from ups.runs.table import key_figures, startup_rows, startup_values, to_markdown


def span(phase, start, end):
    return Span(phase=phase, name=phase, start=start, end=end)


@pytest.mark.parametrize(
    ("times", "seconds"), [([(0, 4), (2, 6), (8, 9), (3, 5)], 7), ([(-5, 3), (9, 20)], 4)]
)
def test_overlapping_spans_are_counted_once_and_only_inside_the_startup(times, seconds):
    assert covered([span("a", start, end) for start, end in times], 0, 10) == seconds


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


FIRST = """{
 "run": "20251123-205537-smoke-136ff0b8", "config": "smoke", "config_hash": null,
 "start_mode": "cold", "triggered_at": 0.0, "ttfs_s": 5.2, "until_s": 5.2, "unaccounted_s": 0.1,
 "cost_usd": 0.0031, "cache_reused": true, "changed": [], "failed": null,
 "phases": [{"phase": "queue", "seconds": 0.5, "share": 0.1, "bound": "the | worker"}],
 "spans": [{"phase": "queue", "name": "queue", "start": 0.0, "end": 0.5, "state": "Completed"}],
 "metrics": {"startup/ttfs_s": NaN}, "nrmse_rollout": 0.02, "nrmse_persistence": 0.3
}"""  # as the first version of the project left it
USE = GpuUse(
    num_samples=9, mean_pct=97, p10_pct=95, idle_share=0.02, max_memory_mb=2345, mean_power_w=None
)


@pytest.fixture
def first(tmp_path):
    """A breakdown of the first version, from its file."""
    (tmp_path / "breakdown.json").write_text(FIRST)
    return Breakdown.load(tmp_path)


def test_what_is_saved_is_loaded_again(first, tmp_path):
    problem = ProblemFigures(
        config_hash="01", cache_reused=None, nrmse_rollout=None, nrmse_persistence=None
    )
    whole = first.model_copy(
        update={"gpu": {FIRST_EPOCH: USE}, "problems": {"a": problem}, "metrics": {"x": 1.0}}
    )
    whole.save(tmp_path)
    assert Breakdown.load(tmp_path) == whole
    assert "tasks" in json.loads((tmp_path / "breakdown.json").read_text())


def test_a_breakdown_of_the_first_version_or_of_a_later_one_is_read(first, tmp_path):
    assert (first.ttfs_s, first.gpu, first.problems, first.provision) == (5.2, None, {}, ())
    tree = json.loads(FIRST) | {"later": 1, "gpu": {"load": {**USE.model_dump(), "later": 2}}}
    tree["phases"][0]["later"] = tree["spans"][0]["later"] = {}
    (tmp_path / "breakdown.json").write_text(json.dumps(tree))
    later = Breakdown.load(tmp_path)
    assert later.phases == first.phases
    assert later.gpu == {"load": USE}


@pytest.mark.parametrize("text", [None, "{", "[1]", '{"ttfs_s": 1.0}'])
def test_a_breakdown_that_is_missing_or_no_breakdown_is_none_and_logged(tmp_path, caplog, text):
    if text is not None:
        (tmp_path / "breakdown.json").write_text(text)
    assert Breakdown.load(tmp_path) is None
    assert ("breakdown.json is left out" in caplog.text) == (text is not None)


def test_the_gpu_is_the_last_row_of_the_startup_where_something_is_known_of_it(first):
    assert startup_rows(first) == [
        {"phase": "queue", "seconds": "0.50", "share": "10%", "what bounds it": "the | worker"}
    ]
    noted = first.model_copy(update={"gpu_note": "no GPU here (why)"})
    assert startup_values(noted)[1:] == [("GPU", None, None, "no GPU here (why)")]
    text = to_markdown(noted, b"", {})
    assert "| queue | 0.50 | 10% | the \\| worker |" in text
    assert "| GPU |  |  | no GPU here (why) |" in text


def test_the_key_figures_say_how_far_persistence_is_behind(first):
    figures = key_figures(first)
    assert figures["time to first step"].startswith("5.20 s ($0.0031 at the config's price")
    assert figures["latent cache"].startswith("reused")
    assert figures["test nRMSE"].endswith("; persistence 0.3000, 15.0 times as much")
    changes = {"ttfs_s": None, "cache_reused": None, "nrmse_rollout": None}
    assert key_figures(first.model_copy(update=changes)) == {}
