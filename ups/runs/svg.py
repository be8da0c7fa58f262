"""Charts as SVG, for a page that is one file: lines, bars of phases, dots.

What is drawn of run number n has the class `run run-n`; colours are the page's.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT, WIDE = 420, 270, 620
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 12, 40  # around the axes
LOG_FROM = 5.0  # times the smallest value, from which on a scale is logarithmic
MARKED = 40  # points of a line, up to which each is marked
NUM_TICKS = 6
ROW = 22  # of bars and dots
LABEL = 82  # beside the rows of phases
CHAR = 6.6  # the width of a letter of a label, about


class Line(NamedTuple):
    """A run's values over x; what is not finite is a gap."""

    run: int
    name: str
    x: Sequence[float]
    y: Sequence[float]


class Bar(NamedTuple):
    """A stretch of a phase, in seconds since the begin of the chart."""

    phase: str
    name: str
    start: float
    end: float
    colour: str


class Dot(NamedTuple):
    """A run's score, in a row of those that belong together."""

    run: int
    name: str
    row: str
    value: float


class Scale:
    """Maps values to pixels, and knows where its ticks are."""

    def __init__(self, values: Iterable[float], first: float, last: float, *, log: bool) -> None:
        """Take in all finite values; a logarithmic scale, where it is asked for, if that helps."""
        found = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
        low, high = min(found), max(found)
        self.is_log = log and low > 0 and high > LOG_FROM * low
        self._first, self._last = first, last
        if self.is_log:
            pad = (high / low) ** 0.05
            self.low, self.high = low / pad, high * pad
        else:
            pad = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
            self.low, self.high = low - pad, high + pad
            if low >= 0 > self.low:
                self.low = 0.0

    def __call__(self, value: float) -> float:
        if self.is_log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self._first + share * (self._last - self._first)

    def ticks(self, *, whole: bool = False) -> list[float]:
        """Round values within the scale.

        Args:
            whole: no fractions.
        """
        return self._log_ticks() if self.is_log else self._linear_ticks(whole)

    def _linear_ticks(self, whole: bool) -> list[float]:
        rough = (self.high - self.low) / NUM_TICKS
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
        step = max(step, 1.0) if whole else step
        first = math.ceil(self.low / step - 1e-9)
        return [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def _log_ticks(self) -> list[float]:
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for subs in ((1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
            ticks = [sub * 10.0**decade for decade in decades for sub in subs]
            ticks = [tick for tick in ticks if self.low <= tick <= self.high]
            if len(ticks) <= NUM_TICKS + 1:
                return ticks
        return ticks[:: -(-len(ticks) // NUM_TICKS)]


def line_chart(lines: Sequence[Line], x_name: str, *, whole: bool = False) -> str:
    """Lines over an axis.

    Args:
        whole: x are counts.
    """
    bottom = HEIGHT - BOTTOM
    x = Scale((v for line in lines for v in line.x), LEFT, WIDTH - RIGHT, log=False)
    y = Scale((v for line in lines for v in line.y), bottom, TOP, log=True)
    parts = [_across(y, LEFT, WIDTH - RIGHT), _along(x, bottom, x_name, whole=whole)]
    for line in lines:
        points = [(a, b) for a, b in zip(line.x, line.y, strict=True) if math.isfinite(a)]
        drawn = [(x(a), y(b)) if _is_drawn(y, b) else None for a, b in points]
        marks = [
            f'<circle class="mark" cx="{place[0]:.1f}" cy="{place[1]:.1f}" '
            f'r="{3 if len(points) <= MARKED else 1.2}">'
            f"<title>{escape(line.name)}\n{x_name} {a:g}: {b:.4g}</title></circle>"
            for (a, b), place in zip(points, drawn, strict=True)
            if place is not None
        ]
        path = f'<path class="line" d="{_path(drawn)}"/>'
        parts.append(f'<g class="run run-{line.run}">{path}{"".join(marks)}</g>')
    return _svg(WIDTH, HEIGHT, parts)


def _is_drawn(scale: Scale, value: float) -> bool:
    return math.isfinite(value) and (value > 0 or not scale.is_log)


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    """Straight lines between neighbours; None is a gap."""
    moves, is_down = [], False
    for point in points:
        if point is not None:
            moves.append(f"{'L' if is_down else 'M'}{point[0]:.1f} {point[1]:.1f}")
        is_down = point is not None
    return "".join(moves)


def phase_chart(
    bars: Sequence[Bar], phases: Sequence[str], seconds: dict[str, float], until: float, end: float
) -> str:
    """A row for each phase, with its seconds behind it.

    Args:
        until: the end of the startup, at which a line stands.
        end: of the axis, which several charts may share.
    """
    height = TOP + ROW * len(phases) + BOTTOM
    bottom = height - BOTTOM
    x = Scale((0.0, max(end, 1e-3)), LABEL, WIDTH - RIGHT, log=False)
    at = f'x1="{x(until):.1f}" x2="{x(until):.1f}" y1="{TOP}" y2="{bottom}"'
    parts = [_along(x, bottom, "seconds", top=TOP), f'<line class="end" {at}/>']
    for row, phase in enumerate(phases):
        middle = TOP + ROW * (row + 0.5)
        parts.append(_text(LABEL - 8, middle + 4, phase, "end"))
        own = [bar for bar in bars if bar.phase == phase and bar.start < end]
        right = float(LABEL)
        for bar in own:
            left, right_of = x(max(bar.start, 0.0)), x(min(bar.end, end))
            right = max(right, right_of)
            parts.append(
                f'<rect x="{left:.1f}" y="{middle - 7:.1f}" width="{max(right_of - left, 1.2):.1f}"'
                f' height="14" rx="2" fill="{bar.colour}" fill-opacity="0.85"><title>'
                f"{escape(bar.name)}: {bar.end - bar.start:.2f} s</title></rect>"
            )
        if phase in seconds:
            label = f"{seconds[phase]:.2f} s"
            is_cut = right + 6 + CHAR * len(label) > WIDTH
            where = (min(x(b.start) for b in own) - 6, "end") if is_cut and own else (right + 6, "")
            parts.append(_text(where[0], middle + 4, label, where[1] or "start"))
    return _svg(WIDTH, height, parts)


def dot_chart(dots: Sequence[Dot], x_name: str) -> str:
    """A row of dots for each name of a row, and a stroke at their median."""
    rows = list(dict.fromkeys(dot.row for dot in dots))
    label = min(max(CHAR * max(map(len, rows)), LABEL) + 12, WIDE / 2)
    height = TOP + ROW * len(rows) + BOTTOM
    bottom = height - BOTTOM
    x = Scale((dot.value for dot in dots), label, WIDE - RIGHT, log=True)
    parts = [_along(x, bottom, x_name, top=TOP)]
    for number, row in enumerate(rows):
        middle = TOP + ROW * (number + 0.5)
        parts.append(_text(label - 8, middle + 4, row, "end"))
        own = [dot for dot in dots if dot.row == row and math.isfinite(dot.value)]
        if len(own) > 1:
            at = x(statistics.median(dot.value for dot in own))
            stroke = f'x1="{at:.1f}" x2="{at:.1f}" y1="{middle - 9:.1f}" y2="{middle + 9:.1f}"'
            parts.append(f'<line class="median" {stroke}/>')
        parts += [
            f'<g class="run run-{dot.run}"><circle class="mark" cx="{x(dot.value):.1f}" '
            f'cy="{middle:.1f}" r="5"><title>{escape(dot.name)}: {dot.value:.4f}</title>'
            "</circle></g>"
            for dot in own
        ]
    return _svg(WIDE, height, parts)


def _across(scale: Scale, left: float, right: float) -> str:
    """The grid's lines from left to right, with their values."""
    return "".join(
        f'<line class="grid" x1="{left}" x2="{right}" y1="{scale(tick):.1f}" '
        f'y2="{scale(tick):.1f}"/>{_text(left - 6, scale(tick) + 4, f"{tick:g}", "end")}'
        for tick in scale.ticks()
    )


def _along(
    scale: Scale, bottom: float, name: str, *, whole: bool = False, top: float | None = None
) -> str:
    """The values below the chart, and, from `top` on, lines up to them."""
    from_y = bottom if top is None else top
    ticks = "".join(
        f'<line class="grid" x1="{scale(tick):.1f}" x2="{scale(tick):.1f}" y1="{from_y}" '
        f'y2="{bottom + 4}"/>{_text(scale(tick), bottom + 17, f"{tick:g}", "middle")}'
        for tick in scale.ticks(whole=whole)
    )
    middle = (scale(scale.low) + scale(scale.high)) / 2
    return ticks + _text(middle, bottom + 34, name, "middle")


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    box = f'viewBox="0 0 {width} {height}" style="max-width:{1.4 * width:.0f}px" role="img"'
    return f'<svg {box} xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
