from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from ups.data.sources import Staged
from ups.latents.arrival import Arrival
from ups.pipeline.overhead import break_down
from ups.pipeline.state import RankTimes, RunState, Steps
from ups.runs.breakdown import IDLE, Span
from ups.runs.table import headline, key_figures, to_markdown


@pytest.mark.parametrize(("fetched", "words"), [(2_000_000, "network: 4 MB"), (0, "4 MB found,")])
def test_the_breakdown_says_of_how_many_files_nothing_could_be_compared(
    tiny_config, tmp_path, fetched, words
):
    run = RunState(tiny_config(), tmp_path)
    for split, is_verified in (("train", False), ("val", True)):
        source = {"uri": f"s3://b/{split}", "path": Path(split), "rows": None, "sha256": "0"}
        sizes = {"num_bytes": 2_000_000, "fetched_bytes": fetched, "seconds": 1.0}
        staged = Staged(split=split, **source, **sizes, is_verified=is_verified)
        run.staged["burgers1d", split] = [staged]
    span = Span(phase="download", name="download", start=0, end=1, state="Completed")
    breakdown = break_down(run, [span], triggered_at=0, start_mode="cold", bounds={})
    (bound,) = [row.bound for row in breakdown.phases if row.phase == "download"]
    assert bound.startswith(words)
    assert bound.endswith("; 1 of 2 files not verified: no manifest")


@pytest.fixture
def broken_down(tiny_config, tmp_path):
    """The breakdown of a run of phases with a start and an end, the training last."""

    def break_down_(*phases, first_step_at, arrival=None, **known):
        run = RunState(tiny_config(), tmp_path, first_step_at=first_step_at, **known)
        if arrival is not None:
            run.latents = SimpleNamespace(arrival=arrival, num_bytes=0)
        spans = [Span(phase=p, name=p, start=start, end=end) for p, start, end in phases]
        return break_down(run, spans, triggered_at=100.0, start_mode="cold", bounds={})

    return break_down_


SEQUENCE = [("boot", 100, 101), ("download", 101, 105), ("cache", 105, 107), ("load", 107, 108)]
OVERLAP = [("boot", 100, 101), ("download", 101, 130), ("warm-up", 101, 104), ("load", 103, 105)]
GAP = [("boot", 100, 101), ("download", 102, 105), ("load", 105, 108)]


@pytest.mark.parametrize(
    ("before", "seconds"),
    [
        (SEQUENCE, {"boot": 1, "download": 4, "cache": 2, "load": 1, "first step": 2}),
        (OVERLAP, {"boot": 1, "download": 2, "load": 2, "first step": 5}),
        (GAP, {"boot": 1, "download": 3, "load": 3, "first step": 2, "unaccounted": 1}),
    ],
)
def test_the_breakdown_says_what_the_first_step_waited_for(broken_down, before, seconds):
    breakdown = broken_down(*before, ("train", before[-1][2], 160), first_step_at=110)
    assert breakdown.waited_for == seconds
    assert sum(breakdown.waited_for.values()) == breakdown.ttfs_s == 10
    line = ", ".join(f"{phase} {s:.2f} s" for phase, s in seconds.items())
    assert key_figures(breakdown)["the first step waited for"] == line
    assert f"- the first step waited for: {line}" in to_markdown(breakdown)


def test_the_wait_for_the_first_rows_is_cut_out_of_the_first_step(broken_down):
    arrival = Arrival(4)
    arrival.first_wait = (108.5, 109.5)
    breakdown = broken_down(*SEQUENCE, ("train", 108, 160), first_step_at=110, arrival=arrival)
    assert breakdown.phase_seconds["first rows"] == breakdown.waited_for["first rows"] == 1
    assert breakdown.phase_seconds["first step"] == breakdown.waited_for["first step"] == 1
    arrival.first_wait = (111.0, 112.0)  # a later step's
    breakdown = broken_down(*SEQUENCE, ("train", 108, 160), first_step_at=110, arrival=arrival)
    assert [s.name for s in breakdown.spans if s.start >= 108] == ["4 first step", "train"]
    assert breakdown.phase_seconds["first step"] == 2
    assert "first rows" not in breakdown.waited_for


def test_the_start_of_ranks_and_their_rendezvous_are_cut_out_of_the_first_step(broken_down):
    ranks = RankTimes(started_at=108.5, joined_at=109.75)
    breakdown = broken_down(*SEQUENCE, ("train", 108, 160), first_step_at=111, ranks=ranks)
    found = {name: breakdown.waited_for[name] for name in ("ranks", "rendezvous", "first step")}
    assert found == {"ranks": 0.5, "rendezvous": 1.25, "first step": 1.25}
    assert [row.phase for row in breakdown.phases][-4:-1] == list(found)
    (bound,) = [row.bound for row in breakdown.phases if row.phase == "first step"]
    assert bound == "one optimizer step of the slowest rank"


def test_what_takes_less_than_a_hundredth_is_no_part_of_the_line(broken_down):
    brief = [("boot", 100, 104.95), ("validate", 104.95, 105)]
    breakdown = broken_down(*brief, ("train", 105, 160), first_step_at=110)
    assert key_figures(breakdown)["the first step waited for"] == "boot 4.95 s, first step 5.00 s"
    assert breakdown.waited_for["validate"] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("known", "awaited"),
    [
        ({"steps": Steps(1, 3, 40)}, [IDLE, "test nRMSE"]),
        ({"steps": Steps(31, 33, 40)}, ["test nRMSE"]),  # resumed: nobody will know its idle time
        ({"steps": Steps(1, 3, 40), "failure": OSError("disk")}, []),
    ],
)
def test_while_a_run_trains_what_is_not_known_is_said_and_no_figure(broken_down, known, awaited):
    breakdown = broken_down(*SEQUENCE, ("train", 108, 160), first_step_at=110, **known)
    figures = key_figures(breakdown)
    assert [name for name, text in figures.items() if text.startswith("not known")] == awaited
    assert not figures.keys() & ({IDLE, "test nRMSE", "latent cache"} - set(awaited))
    assert "cache" not in headline(breakdown)
    assert breakdown.gpu_words == ("the first epoch is not over" if IDLE in awaited else "")


def test_without_a_first_step_nothing_is_said_of_what_it_waited_for(broken_down):
    breakdown = broken_down(("boot", 100, 101), ("download", 101, 105), first_step_at=None)
    assert breakdown.waited_for == {}
    assert "the first step waited for" not in key_figures(breakdown)


def test_a_run_watches_a_gpu_for_each_rank_that_it_starts(tiny_config, tmp_path, monkeypatch):
    assert RunState(tiny_config(), tmp_path).gpu.num_gpus == 1
    config = tiny_config(training__ranks=2)
    assert RunState(config, tmp_path).gpu.num_gpus == 2
    for assignment in ["RANK=0", "WORLD_SIZE=2", "LOCAL_RANK=0", "MASTER_ADDR=a", "MASTER_PORT=1"]:
        monkeypatch.setenv(*assignment.split("="))
    assert RunState(config, tmp_path).gpu.num_gpus == 1  # a launcher starts them
