"""How the figures of a comparison are written, wherever a person reads them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ups.startup.compare import Comparison, PhaseSummary, ScenarioSummary, Spread
from ups.startup.critical_path import UNACCOUNTED, NextPhase, Step
from ups.startup.stats import Difference, Ratio
from ups.startup.verdict import Verdict

MINUS = "−"
NOTHING = "–"
NO_BOUND = "no bound measured"
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


def seconds(value: float) -> str:
    return f"{figure(value)} s"


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
    """`3.1× [2.8–3.4]`, without the interval where it is not known."""
    if ratio is None:
        return NOTHING
    if math.isnan(ratio.low):
        return f"{factor(ratio.value)}×"
    return f"{factor(ratio.value)}× [{factor(ratio.low)}–{factor(ratio.high)}]"


def factor(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:,.0f}"


def difference(change: Difference | None) -> str:
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
    if phase.bound_s is None or phase.times_bound is None:
        return NOTHING
    return f"{seconds(phase.bound_s)}, taken {factor(phase.times_bound)}×"


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


def next_phase(scenario: ScenarioSummary) -> str:
    """Which phase to work on next, and why; then the first of those whose bound is known."""
    chosen, measured = scenario.next, scenario.next_measured
    if chosen is None:
        return "every phase is at its bound"
    text = _above(chosen)
    return text if measured in (None, chosen) else f"{text}; then {_above(measured)}"


def _above(chosen: NextPhase) -> str:
    text = f"{chosen.phase}: {seconds(chosen.seconds)} of the critical path"
    if chosen.bound_s is None:
        return f"{text}, {NO_BOUND}"
    return f"{text}, {seconds(chosen.above_s)} above its bound of {seconds(chosen.bound_s)}"


def next_phases(scenario: ScenarioSummary) -> str:
    """Their names alone, for a column that the UI does not wrap: `boot, download`."""
    chosen, measured = scenario.next, scenario.next_measured
    if chosen is None:
        return NOTHING
    return chosen.phase if measured in (None, chosen) else f"{chosen.phase}, {measured.phase}"


def headline(comparison: Comparison) -> str:
    """What a person must know first, in one line: what got worse and by how much, before all else.

    `Worse: cold +65 % (4.05 s → 6.70 s); unchanged: legacy (worse beyond 7.10 s)`
    """
    parts = []
    for kind in ("worse", "improved", "no verdict yet", "unchanged"):
        told = [verdict for verdict in comparison.verdicts if verdict.kind == kind]
        if not told:
            continue
        if kind in ("worse", "improved"):
            text = ", ".join(_by_how_much(verdict) for verdict in told)
        elif kind == "unchanged":
            text = _unchanged(told)
        else:
            names = [verdict.scenario for verdict in told]
            text = ", ".join(names) if len(names) <= NAMED else f"{len(names)} scenarios"
            text += f" ({_runs_before(told)})"
        parts.append(f"{kind}: {text}")
    line = "; ".join(parts) or "not compared with the history"
    return line[0].upper() + line[1:]


def _by_how_much(verdict: Verdict) -> str:
    assert verdict.before_s is not None
    assert verdict.after_s is not None
    by = percent(100 * (verdict.after_s / verdict.before_s - 1))
    return f"{verdict.scenario} {by} ({seconds(verdict.before_s)} → {seconds(verdict.after_s)})"


def _unchanged(verdicts: Sequence[Verdict]) -> str:
    """With the limits, which say how much the verdicts can have told."""
    if len(verdicts) <= NAMED:
        return ", ".join(f"{v.scenario} (worse beyond {_limit(v)})" for v in verdicts)
    beyond = [v.limit_s / v.before_s for v in verdicts if v.limit_s and v.before_s]
    least, most = (percent(100 * (times - 1)) for times in (min(beyond), max(beyond)))
    reach = least if least == most else f"{least} to {most}"
    return f"{len(verdicts)} scenarios (worse beyond {reach})"


def _limit(verdict: Verdict) -> str:
    assert verdict.limit_s is not None
    return seconds(verdict.limit_s)


def _runs_before(verdicts: Sequence[Verdict]) -> str:
    """`2 of 5 runs before`, of the one with the fewest."""
    fewest = min(verdicts, key=lambda verdict: verdict.num_before)
    needed = "" if fewest.least_runs is None else f" of {fewest.least_runs}"
    return f"{fewest.num_before}{needed} runs before"


def verdict(comparison: Comparison, scenario: str) -> str:
    """The verdict on one scenario, in a few words; a dash where there is none."""
    for told in comparison.verdicts:
        if told.scenario == scenario:
            if told.kind == "no verdict yet":
                return f"{told.kind}: {_runs_before([told])}"
            side = "below" if told.kind == "improved" else "beyond"
            kind = f"{told.kind}, worse" if told.kind == "unchanged" else told.kind
            return f"{kind} {side} {_limit(told)}"
    return NOTHING


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
    """A line for each scenario in which something moved, TTFS or a phase."""
    return [
        told.message
        for told in comparison.verdicts
        if told.kind in ("worse", "improved") or told.moved_phases
    ]


def moment(at: float) -> str:
    """A Unix time, as `2026-11-23 22:57 UTC`."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")


def facts(values: Mapping[str, Any]) -> str:
    """`name value, name value`; nested ones in brackets behind their name."""
    return ", ".join(f"{name} {_fact(value)}" for name, value in values.items())


def _fact(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"({facts(value)})"
    if isinstance(value, (list, tuple)):
        return " ".join(str(item) for item in value)
    return "not known" if value is None else str(value)
