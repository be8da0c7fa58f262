"""How the figures of a comparison are written in tables, reports and pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ups.runs.critical_path import UNACCOUNTED, Step
from ups.startup.judge.compare import Comparison, PhaseSummary, ScenarioSummary, Spread
from ups.startup.judge.next_phase import NextPhase
from ups.startup.judge.stats import Interval, Ratio, factor
from ups.startup.judge.verdict import Verdict

MINUS = "−"
NOTHING = "–"
NO_BOUND = "no bound measured"
NO_NEXT = "every phase is at its bound"
DIGITS_BELOW = ((0.00995, 4), (0.9995, 3), (9.995, 2), (99.95, 1))
NAMED = 3  # scenarios that a headline names; of more it says how many
BRIEF = 0.01  # of a critical path: what is shorter than that is left out


def figure(seconds: float) -> str:
    """Seconds without the unit, to the digit that can matter: `0.0086`, `0.310`, `4.21`, `1,240`.

    Nothing is `0`, less than that digit can show `<0.0001`.
    """
    size = abs(seconds)
    if size < 0.00005:
        return "<0.0001" if size else "0"
    digits = next((digits for limit, digits in DIGITS_BELOW if size < limit), 0)
    return f"{seconds:,.{digits}f}".replace("-", MINUS)


def seconds(value: float | None) -> str:
    """`4.21 s`; a dash where it is not known."""
    return NOTHING if value is None else f"{figure(value)} s"


def signed(value: float) -> str:
    """`+0.42`, `−0.10`: a difference in seconds, without the unit."""
    if abs(value) < 0.00005:
        return "0"
    return ("+" if value > 0 else "") + figure(value)


def spread(values: Spread) -> str:
    """`4.21 s [4.02–4.40]`, of one run the run alone."""
    if values.num == 1:
        return seconds(values.median)
    return f"{seconds(values.median)} [{figure(values.smallest)}–{figure(values.largest)}]"


def times(ratio: Ratio | None) -> str:
    """`3.12× [2.80–3.40]`; a dash where there is none."""
    return NOTHING if ratio is None else str(ratio)


def difference(change: Interval | None) -> str:
    """`+0.42 s [+0.30 to +0.55]`, without the interval where it is not known."""
    if change is None:
        return NOTHING
    value = f"{signed(change.value)} s"
    if math.isnan(change.low):
        return value
    return f"{value} [{signed(change.low)} to {signed(change.high)}]"


def percent(value: float) -> str:
    return f"{value:+,.0f} %".replace("-", MINUS) if abs(value) >= 0.5 else "0 %"


def bound(phase: PhaseSummary) -> str:
    """`0.100 s, taken 3.2×`; a dash where nobody measured it."""
    if not phase.bound_s:
        return NOTHING
    return f"{seconds(phase.bound_s)}, taken {factor(phase.seconds.median / phase.bound_s)}×"


def what_bounds(phase: PhaseSummary) -> str:
    """In words, and whether anybody measured how much that is."""
    if phase.bound_s is not None or phase.phase == UNACCOUNTED:
        return phase.bound
    return "; ".join(text for text in (phase.bound, NO_BOUND) if text)


def path(steps: Sequence[Step]) -> str:
    """`queue 0.395 s → boot 0.614 s → …`, in the order of beginnings, without what is brief."""
    spent: dict[str, float] = {}
    for step in steps:  # work beside it may cut one into parts
        spent[step.name] = spent.get(step.name, 0.0) + step.seconds
    least = BRIEF * sum(spent.values())
    return " → ".join(f"{name} {seconds(s)}" for name, s in spent.items() if s >= least)


def _next(scenario: ScenarioSummary) -> list[NextPhase]:
    """Which phase to work on next, then the first of those whose bound is known."""
    found = (scenario.next, scenario.next_measured)
    return list(dict.fromkeys(phase for phase in found if phase is not None))


def next_phase(scenario: ScenarioSummary) -> str:
    """Which phases to work on next, and why."""
    return "; then ".join(_above(phase) for phase in _next(scenario)) or NO_NEXT


def _above(chosen: NextPhase) -> str:
    text = f"{chosen.phase}: {seconds(chosen.seconds)} of the critical path"
    if chosen.bound_s is None:
        return f"{text}, {NO_BOUND}"
    return f"{text}, {seconds(chosen.above_s)} above its bound of {seconds(chosen.bound_s)}"


def next_phases(scenario: ScenarioSummary) -> str:
    """Their names alone, for a column that the UI does not wrap: `boot, download`."""
    return ", ".join(phase.phase for phase in _next(scenario)) or NOTHING


def headline(comparison: Comparison) -> str:
    """What a person must know first, in one line: what got worse and by how much, before all else.

    `Worse: cold +65 % (4.05 s → 6.70 s); unchanged: legacy (worse beyond 7.10 s)`
    """
    parts = []
    for kind in ("worse", "improved", "no verdict yet", "unchanged"):
        verdicts = [verdict for verdict in comparison.verdicts if verdict.kind == kind]
        if not verdicts:
            continue
        if kind in ("worse", "improved"):
            text = ", ".join(_by_how_much(verdict) for verdict in verdicts)
        elif kind == "unchanged":
            text = _unchanged(verdicts)
        else:
            whole = {verdict.scenario for verdict in verdicts if verdict.figure == "TTFS"}
            named = [v for v in verdicts if v.figure == "TTFS" or v.scenario not in whole]
            names = [_judged(verdict) for verdict in named]
            text = ", ".join(names) if len(names) <= NAMED else f"{len(names)} scenarios"
            text += f" ({_runs_before(named)})"
        parts.append(f"{kind}: {text}")
    line = "; ".join(parts) or "not compared with the history"
    return line[0].upper() + line[1:]


def _by_how_much(verdict: Verdict) -> str:
    assert verdict.before_s is not None
    assert verdict.after_s is not None
    by = percent(100 * (verdict.after_s / verdict.before_s - 1))
    return f"{_judged(verdict)} {by} ({seconds(verdict.before_s)} → {seconds(verdict.after_s)})"


def _judged(verdict: Verdict) -> str:
    """`cold`, and of its idle seconds `cold idle`."""
    return verdict.scenario if verdict.figure == "TTFS" else f"{verdict.scenario} idle"


def _unchanged(verdicts: Sequence[Verdict]) -> str:
    """With the limits, which say how much the verdicts can have told."""
    if len(verdicts) <= NAMED:
        return ", ".join(f"{_judged(v)} (worse beyond {seconds(v.limit_s)})" for v in verdicts)
    beyond = [v.limit_s / v.before_s for v in verdicts if v.limit_s and v.before_s]
    least, most = (percent(100 * (times - 1)) for times in (min(beyond), max(beyond)))
    reach = least if least == most else f"{least} to {most}"
    return f"{len({v.scenario for v in verdicts})} scenarios (worse beyond {reach})"


def _runs_before(verdicts: Sequence[Verdict]) -> str:
    """`2 of 5 runs before`, of the one with the fewest."""
    fewest = min(verdicts, key=lambda verdict: verdict.num_before)
    needed = "" if fewest.least_runs is None else f" of {fewest.least_runs}"
    return f"{fewest.num_before}{needed} runs before"


def verdict(comparison: Comparison, scenario: str) -> str:
    """The verdicts on one scenario, in a few words; a dash where there is none."""
    found = {v.figure: v for v in comparison.verdicts if v.scenario == scenario}
    if not found:
        return NOTHING
    text, idle = _kind(found["TTFS"]), found.get("idle")
    if idle is None or _kind(idle) == text:  # as both are while there are too few runs before
        return text
    if idle.kind == found["TTFS"].kind and idle.limit_s is not None:
        return f"{text}, idle {seconds(idle.limit_s)}"
    return f"{text}; idle: {_kind(idle)}"


def _kind(found: Verdict) -> str:
    if found.kind == "no verdict yet":
        return f"{found.kind}: {_runs_before([found])}"
    side = "below" if found.kind == "improved" else "beyond"
    kind = f"{found.kind}, worse" if found.kind == "unchanged" else found.kind
    return f"{kind} {side} {seconds(found.limit_s)}"


def other_load(comparison: Comparison) -> str:
    """What a reader of the times must know of the machine; empty where it was left alone."""
    found = comparison.other_load
    if found is None:
        return ""
    return (
        f"Something else was running before {found.num_runs} of {found.of_runs} runs (up to "
        f"{found.most_cores:.1f} cores): these times may be longer than they are alone"
    )


def news(comparison: Comparison) -> list[str]:
    """A line for each verdict in which something moved: TTFS, a phase, the idle seconds."""
    return [
        verdict.message
        for verdict in comparison.verdicts
        if verdict.kind in ("worse", "improved") or verdict.moved_phases
    ]


def facts(values: Mapping[str, Any]) -> str:
    """`name value, name value`; nested ones in brackets behind their name."""
    return ", ".join(f"{name} {_fact(value)}" for name, value in values.items())


def _fact(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"({facts(value)})"
    if isinstance(value, (list, tuple)):
        return " ".join(str(item) for item in value)
    return "not known" if value is None else str(value)
