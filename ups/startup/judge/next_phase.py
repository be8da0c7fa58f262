"""The phase to work on next: the one with the most seconds to gain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ups.config import Model
from ups.runs.critical_path import Step, seconds_by_phase


class NextPhase(Model):
    """The phase to work on next.

    Attributes:
        seconds: of it on the critical path.
        bound_s: the least seconds that it needs; None where nobody measured that.
        above_s: what there is to gain: the seconds above the bound.
    """

    phase: str
    seconds: float
    bound_s: float | None
    above_s: float


def next_to_improve(
    path: Sequence[Step], bounds_s: Mapping[str, float], measured_only: bool = False
) -> NextPhase | None:
    """The phase with the most critical seconds above its bound; None where none is above it.

    Args:
        bounds_s: phase → the least seconds that it needs, where measured; else 0 is taken.
        measured_only: leave out those whose bound nobody measured.
    """
    candidates = [
        NextPhase(
            phase=phase,
            seconds=seconds,
            bound_s=bounds_s.get(phase),
            above_s=seconds - bounds_s.get(phase, 0.0),
        )
        for phase, seconds in seconds_by_phase(path).items()
        if phase in bounds_s or not measured_only
    ]
    best = max(candidates, key=lambda candidate: candidate.above_s, default=None)
    return best if best is not None and best.above_s > 0 else None
