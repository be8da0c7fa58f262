"""`trace.json`, as Perfetto reads it."""

import json

import numpy as np
import pytest

from ups.machine.gpu import GpuSample
from ups.runs.breakdown import Breakdown, Span
from ups.runs.trace_file import PHASES, THREADS, trace_events, write_trace
from ups.trace import Steps, Stretch, Thread, Trace

MAIN, FETCH, ENCODE = Thread(1, "MainThread"), Thread(2, "fetch 0"), Thread(3, "encode 0")
SPANS = (("boot", 0, 1), ("download", 1, 3), ("download", 1.5, 2), ("download", 2.5, 4))


def breakdown(*spans):
    return Breakdown(
        run="20260101-120000-smoke-aa", config="smoke", config_hash=None, start_mode="cold",
        triggered_at=100, ttfs_s=5, until_s=5, unaccounted_s=0, cost_usd=0, cache_reused=None,
        phases=(), metrics={},
        spans=tuple(Span(phase=p, name=p, start=100 + a, end=100 + b) for p, a, b in spans),
    )  # fmt: skip


def fetch(start, end, *place):
    return Stretch("fetch", FETCH, 100 + start, 100 + end, {"object": "s3://b/k", "bytes": place})


def encode(start, end, rows, place, split="train"):
    facts = {"split": split, "rows": rows, "turn": 0, "object": "s3://b/k", "bytes": place}
    return Stretch("encode", ENCODE, 100 + start, 100 + end, facts)


@pytest.fixture
def trace():
    """Two chunks of train and one of val; of the four trajectories, chunk 1 is taken last."""
    found = Trace()
    found.stretches += [
        fetch(1, 2, 0, 100), fetch(2, 2.5, 100, 200), fetch(2.5, 3, 200, 300),
        encode(0.5, 2.2, (0, 2), (50, 110)), encode(2.6, 2.8, (2, 4), (110, 200)),
        encode(2.9, 3.1, (0, 2), (200, 300), "val"),
        Stretch("wait for rows", MAIN, 102.1, 102.9, {}),
        Stretch("validate", MAIN, 103.5, 103.9, {}),
    ]  # fmt: skip
    found.steps = Steps(MAIN, np.array([9, 9, 2, 3, 2, 0, 1, 1]), 2, 2, [102.0, 102.9, 103.2])
    return found


def of_kind(events, *kinds):
    return [event for event in events if event["ph"] in kinds]


def slices(events, process):
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    return [
        (names[e["pid"], e["tid"]], e["name"], e["ts"] / 1e6, (e["ts"] + e["dur"]) / 1e6)
        for e in of_kind(events, "X")
        if e["pid"] == process
    ]


def test_phases_that_overlap_lie_in_rows_of_their_own(trace):
    events = trace_events(trace, breakdown(*SPANS))
    found = slices(events, PHASES)
    assert found == [(phase, phase, start, end) for phase, start, end in SPANS]
    rows = [event["tid"] for event in of_kind(events, "X") if event["pid"] == PHASES]
    assert rows == [1, 2, 3, 3]


def test_a_step_ends_where_the_next_begins_or_a_wait_does(trace):
    events = trace_events(trace, breakdown(*SPANS))
    steps = [s for s in slices(events, THREADS) if s[1].startswith("step")]
    assert steps == [
        ("main: training", "step 1", 2.0, 2.1),
        ("main: training", "step 2", 2.9, 3.2),
        ("main: training", "step 3", 3.2, 3.5),
    ]
    facts = [e["args"] for e in of_kind(events, "X") if e["name"].startswith("step")]
    assert [of["trajectories"] for of in facts] == [2, 2, 1]


def test_arrows_lead_from_the_last_bytes_of_a_chunk_to_its_latents_to_the_first_step_on_it(trace):
    events = trace_events(trace, breakdown(*SPANS))
    arrows = {}
    for event in of_kind(events, "s", "t", "f"):
        arrows.setdefault(event["id"], []).append(event)
    ends = [[(e["ph"], around(events, e)["name"]) for e in arrow] for arrow in arrows.values()]
    assert ends == [
        [("s", "fetch"), ("t", "encode"), ("f", "step 2")],  # trajectory 0
        [("s", "fetch"), ("t", "encode"), ("f", "step 1")],
        [("s", "fetch"), ("f", "encode")],
    ]
    assert around(events, arrows[1][0])["args"]["bytes"] == [100, 200]  # not the first of two


def around(events, arrow):
    """The slice that an end of an arrow lies in."""
    (found,) = [
        e for e in json.loads(json.dumps(of_kind(events, "X")))
        if (e["pid"], e["tid"]) == (arrow["pid"], arrow["tid"])
        and e["ts"] <= arrow["ts"] <= e["ts"] + e["dur"]
    ]  # fmt: skip
    return found


def test_slices_of_a_thread_lie_beside_or_in_each_other(trace):
    events = of_kind(trace_events(trace, breakdown(*SPANS)), "X")
    for a in events:
        for b in events:
            if (a["pid"], a["tid"]) == (b["pid"], b["tid"]) and a["ts"] < b["ts"]:
                a_end, b_end = a["ts"] + a["dur"], b["ts"] + b["dur"]
                assert a_end <= b["ts"] or b_end <= a_end


def test_the_file_begins_with_its_events_and_has_curves(trace, tmp_path):
    trace.num_left_out = 3
    samples = [GpuSample(101.0, 50.0, 1000.0, 200.0), GpuSample(102.0, 60.0, 1000.0, None)]
    path = write_trace(tmp_path, trace, breakdown(*SPANS), samples)
    text = path.read_text()
    assert text.startswith('{"traceEvents":[')  # the format's readers stop at what they do not know
    content = json.loads(text)
    assert content["otherData"]["left_out"] == 3
    curves = of_kind(content["traceEvents"], "C")
    fetched = [e["args"]["value"] for e in curves if e["name"] == "fetched, MB"]
    assert fetched == pytest.approx([0.0001, 0.0002, 0.0003], abs=1e-3)
    assert [e["args"]["value"] for e in curves if e["name"] == "GPU, %"] == [50.0, 60.0]
    assert [e["args"]["value"] for e in curves if e["name"] == "GPU power, W"] == [200.0]
    two = [GpuSample(101.0, 50.0, 1000.0, None), GpuSample(101.0, 60.0, 1000.0, None, gpu=1)]
    curves = of_kind(trace_events(Trace(), breakdown(), two), "C")
    busy = {e["name"]: e["args"]["value"] for e in curves if e["name"].endswith("%")}
    assert busy == {"GPU 0, %": 50.0, "GPU 1, %": 60.0}


def test_of_a_run_that_has_not_begun_to_train_there_are_the_phases():
    assert slices(trace_events(Trace(), breakdown(*SPANS)), THREADS) == []
