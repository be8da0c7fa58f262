"""The critical path of a startup: what the first step waited for, moment by moment."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from ups.config import Model
from ups.runs.breakdown import STARTUP_PHASES, Span

UNACCOUNTED = "unaccounted"
ROUNDING_S = 1e-5  # times that are the same moment, written down twice


class Step(Model):
    """A stretch of the critical path. Times are Unix times in seconds."""

    phase: str
    name: str
    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


def critical_path(spans: Iterable[Span], start: float, end: float) -> tuple[Step, ...]:
    """What was waited for from `start` to `end`, without a gap, in order of time.

    Walks back from the end: what a moment waited for is the span that ended last before it.
    Where that one ended earlier, the time between is given to the span that ran through most of
    it, though it ended later: `unaccounted` are only moments that no span covers. It knows no
    dependencies: a span that happened to end just before another began counts as waited for.

    Args:
        start, end: of the startup, Unix times in seconds.
    """
    lasting = [span for span in spans if span.end > max(span.start, start)]
    steps: list[Step] = []
    at = end
    while at > start:
        begun = [span for span in lasting if span.start < at]
        ended = [span for span in begun if span.end <= at + ROUNDING_S]
        last = max(ended, key=lambda span: (span.end, -span.start), default=None)
        reached = start if last is None else last.end
        if last is not None and at - reached <= ROUNDING_S:
            step = _part(last, start, at)
        elif running := [span for span in begun if span.end > at + ROUNDING_S]:
            # All of them run up to `at`, so the one that began first covers the most.
            step = _part(min(running, key=lambda span: (span.start, -span.end)), reached, at)
        else:
            step = Step(phase=UNACCOUNTED, name=UNACCOUNTED, start=reached, end=at)
        steps.append(step)
        at = step.start
    return tuple(reversed(steps))


def _part(span: Span, start: float, end: float) -> Step:
    return Step(phase=span.phase, name=span.name, start=max(span.start, start), end=end)


def seconds_by_phase(path: Sequence[Step]) -> dict[str, float]:
    """phase → its seconds on the path, in the order of a startup, `unaccounted` last."""
    seconds: dict[str, list[float]] = {}
    for step in path:
        seconds.setdefault(step.phase, []).append(step.seconds)
    return {phase: math.fsum(seconds[phase]) for phase in in_order(seconds)}


def in_order(phases: Iterable[str]) -> list[str]:
    """Each phase once, in the order of a startup; others behind it, `unaccounted` last."""
    present = dict.fromkeys(phases)
    others = [phase for phase in present if phase not in (*STARTUP_PHASES, UNACCOUNTED)]
    wanted = (*STARTUP_PHASES, *others, UNACCOUNTED)
    return [phase for phase in wanted if phase in present]
