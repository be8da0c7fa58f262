"""`trace.json` of a run's folder, in the Chrome trace event format, which Perfetto opens.

It has the phases, as the breakdown has them; the threads, with what they noted; and as curves what
was fetched, and what the GPU did. Arrows lead from the range that brought the last bytes of a chunk
to where it was encoded, and on to the step that first trained on it.
"""

from __future__ import annotations

import bisect
import itertools
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ups.files import write_atomically
from ups.machine.gpu import GpuSample
from ups.runs.breakdown import Breakdown, Span
from ups.trace import Steps, Stretch, Thread, Trace

TRACE = "trace.json"
PHASES, THREADS = 1, 2  # as if they were processes: a viewer groups their rows
FETCH, ENCODE, PULL = "fetch", "encode", "pull"  # names of stretches
INSIDE_US = 0.5  # an arrow leads to the slice around its end: so far inside of that it ends

Event = dict[str, Any]


def write_trace(
    run_dir: Path, trace: Trace, breakdown: Breakdown, samples: Sequence[GpuSample] = ()
) -> Path:
    """Write what is known so far; a reader sees the old file or the new.

    It has no checksum: the format's readers take nothing before its list of events.
    """
    content = {
        "traceEvents": trace_events(trace, breakdown, samples),
        "displayTimeUnit": "ms",
        "otherData": {
            "run": breakdown.run,
            "triggered_at": breakdown.triggered_at,
            "left_out": trace.num_left_out,
        },
    }
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
    write_atomically(run_dir / TRACE, text.encode(), durable=False)
    return run_dir / TRACE


def trace_events(
    trace: Trace, breakdown: Breakdown, samples: Sequence[GpuSample] = ()
) -> list[Event]:
    """The events of a trace; their times are microseconds since the trigger."""
    clock = _Clock(breakdown.triggered_at)
    stretches = list(trace.stretches)  # threads may still add to it
    threads = _Threads()
    slices = [threads.slice(clock, stretch) for stretch in stretches]
    steps = _step_stretches(trace.steps, stretches)
    slices += [threads.slice(clock, stretch) for stretch in steps]
    return [
        *_name_process(PHASES, "phases"),
        *_phases(clock, breakdown.spans),
        *_name_process(THREADS, "threads"),
        *threads.names(),
        *slices,
        *_arrows(clock, threads, stretches, trace.steps, steps),
        *_fetched(clock, stretches),
        *_gpu(clock, samples),
    ]


class _Clock:
    def __init__(self, begin: float) -> None:
        self._begin = begin

    def __call__(self, at: float) -> float:
        """Microseconds since the trigger of a Unix time."""
        return round((at - self._begin) * 1e6, 1)


class _Threads:
    """Numbers the threads in the order in which they are met, the main thread before all."""

    def __init__(self) -> None:
        self._numbers: dict[Thread, int] = {}

    def number(self, thread: Thread) -> int:
        return self._numbers.setdefault(thread, len(self._numbers) + 1)

    def slice(self, clock: _Clock, stretch: Stretch) -> Event:
        return {
            **_slice(THREADS, self.number(stretch.thread), stretch.name, clock, stretch),
            "args": stretch.facts,
        }

    def names(self) -> Iterator[Event]:
        for thread, number in self._numbers.items():
            is_main = thread.name == "MainThread"
            name = "main: training" if is_main else thread.name
            yield from _name_thread(THREADS, number, name, 0 if is_main else number)


def _slice(process: int, thread: int, name: str, clock: _Clock, span: Span | Stretch) -> Event:
    start = clock(span.start)
    duration = max(clock(span.end) - start, 0.0)
    where = {"ph": "X", "cat": "ups", "pid": process, "tid": thread}
    return {**where, "name": name, "ts": start, "dur": round(duration, 1)}


def _phases(clock: _Clock, spans: Iterable[Span]) -> Iterator[Event]:
    """A row for each phase, and more where stretches of it overlap."""
    rows: list[tuple[str, float]] = []  # phase, and when the last stretch in the row ends
    for span in sorted(spans, key=lambda span: (span.start, -span.end)):
        free = (i for i, row in enumerate(rows) if row[0] == span.phase and row[1] <= span.start)
        number = next(free, None)
        if number is None:
            number = len(rows)
            rows.append((span.phase, 0.0))
            yield from _name_thread(PHASES, number + 1, span.phase, number)
        rows[number] = (span.phase, span.end)
        event = _slice(PHASES, number + 1, span.name, clock, span)
        yield {**event, "args": {"state": span.state}}


def _step_stretches(steps: Steps | None, stretches: Sequence[Stretch]) -> list[Stretch]:
    """A stretch for each step: up to the next, or to what the thread noted before that."""
    if steps is None or not steps.began_at:
        return []
    begun = list(steps.began_at)  # the training may still add to it
    noted = sorted(s.start for s in stretches if s.thread == steps.thread)
    found = []
    for number, (start, following) in enumerate(itertools.pairwise([*begun, time.time()])):
        place = bisect.bisect_left(noted, start)
        end = min(following, noted[place]) if place < len(noted) else following
        facts = {"trajectories": len(np.unique(steps.rows(number)))}
        found.append(Stretch(f"step {number + 1}", steps.thread, start, end, facts))
    return found


def _arrows(
    clock: _Clock,
    threads: _Threads,
    stretches: Sequence[Stretch],
    steps: Steps | None,
    step_stretches: Sequence[Stretch],
) -> Iterator[Event]:
    """From the bytes of a chunk to its latents, and on to the first step that they are taken by."""
    fetches = _Fetches(stretches)
    first_step = _first_steps(steps, len(step_stretches))
    streamed = (s for s in stretches if s.name in (ENCODE, PULL) and "turn" in s.facts)
    for number, chunk in enumerate(streamed, 1):
        encoded_at = clock(chunk.end) - _inside(chunk)
        stations = [(chunk, encoded_at)]
        if (last := fetches.last_of(chunk)) is not None:
            left_at = min(clock(last.end) - _inside(last), encoded_at)
            stations.insert(0, (last, max(clock(last.start), left_at)))
        rows = range(*chunk.facts["rows"]) if chunk.facts["split"] == "train" else ()
        if taken := [first_step[row] for row in rows if row in first_step]:
            step = step_stretches[min(taken)]
            stations.append((step, clock(step.start) + _inside(step)))
        if len(stations) > 1:
            yield from _arrow(number, threads, stations)


class _Fetches:
    """Finds what brought the bytes of a chunk: of thousands, without looking at each."""

    def __init__(self, stretches: Sequence[Stretch]) -> None:
        self._fetches = defaultdict(list)
        for stretch in sorted(_fetches(stretches), key=lambda s: s.facts["bytes"]):
            self._fetches[stretch.facts["object"]].append(stretch)
        self._starts = {
            uri: [stretch.facts["bytes"][0] for stretch in of] for uri, of in self._fetches.items()
        }

    def last_of(self, chunk: Stretch) -> Stretch | None:
        """The fetch that was over last of those of its bytes; None where they were there."""
        uri, (start, end) = chunk.facts.get("object"), chunk.facts.get("bytes", (0, 0))
        after = bisect.bisect_left(self._starts.get(uri, []), end)
        brought = []
        while after > 0 and (fetch := self._fetches[uri][after - 1]).facts["bytes"][1] > start:
            brought.append(fetch)
            after -= 1
        return max(brought, key=lambda s: s.end, default=None)


def _fetches(stretches: Iterable[Stretch]) -> list[Stretch]:
    return [s for s in stretches if s.name == FETCH and "error" not in s.facts]


def _inside(stretch: Stretch) -> float:
    """Microseconds from the end of a slice at which an arrow is still bound to it."""
    return min(INSIDE_US, (stretch.end - stretch.start) * 1e6 / 2)


def _arrow(
    number: int, threads: _Threads, stations: Sequence[tuple[Stretch, float]]
) -> Iterator[Event]:
    for place, (stretch, at) in enumerate(stations):
        kind = "s" if place == 0 else "f" if place == len(stations) - 1 else "t"
        arrow = {"ph": kind, "id": number, "cat": "chunk", "name": "chunk", "bp": "e"}
        thread = threads.number(stretch.thread)
        yield {**arrow, "pid": THREADS, "tid": thread, "ts": round(at, 1)}


def _first_steps(steps: Steps | None, num: int) -> Mapping[int, int]:
    """Trajectory of train → the first of `num` steps that took it."""
    if steps is None or num == 0:
        return {}
    rows = np.asarray(steps.rows_M[steps.first : steps.first + num * steps.num_each])
    found, places = np.unique(rows, return_index=True)
    return dict(zip(found.tolist(), (places // steps.num_each).tolist(), strict=True))


def _fetched(clock: _Clock, stretches: Sequence[Stretch]) -> Iterator[Event]:
    """A curve of the bytes that have come."""
    total = 0
    for stretch in sorted(_fetches(stretches), key=lambda s: s.end):
        total += stretch.facts["bytes"][1] - stretch.facts["bytes"][0]
        yield _point(clock, stretch.end, "fetched, MB", total / 1e6)


def _gpu(clock: _Clock, samples: Sequence[GpuSample]) -> Iterator[Event]:
    chosen = list(samples)
    several = any(sample.gpu for sample in chosen)
    for sample in chosen:
        gpu = f"GPU {sample.gpu}" if several else "GPU"
        yield _point(clock, sample.at, f"{gpu}, %", sample.utilisation_pct)
        yield _point(clock, sample.at, f"{gpu} memory, MB", sample.memory_mb)
        if sample.power_w is not None:
            yield _point(clock, sample.at, f"{gpu} power, W", sample.power_w)


def _point(clock: _Clock, at: float, name: str, value: float) -> Event:
    point = {"ph": "C", "pid": THREADS, "tid": 0, "name": name, "ts": clock(at)}
    return {**point, "args": {"value": round(value, 3)}}


def _name_process(number: int, name: str) -> list[Event]:
    named = {"ph": "M", "pid": number, "tid": 0}
    return [
        {**named, "name": "process_name", "args": {"name": name}},
        {**named, "name": "process_sort_index", "args": {"sort_index": number}},
    ]


def _name_thread(process: int, number: int, name: str, place: int) -> list[Event]:
    named = {"ph": "M", "pid": process, "tid": number}
    return [
        {**named, "name": "thread_name", "args": {"name": name}},
        {**named, "name": "thread_sort_index", "args": {"sort_index": place}},
    ]
