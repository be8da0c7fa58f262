"""Several runs side by side as a page: one HTML file, which needs no network, light or dark."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from ups.config import MOST_NAMED
from ups.files import write_atomically
from ups.runs import svg
from ups.runs.breakdown import STARTUP_PHASES
from ups.runs.compare import TTFS
from ups.runs.gantt import COLOURS
from ups.runs.index import RunFiles
from ups.runs.metrics import LOSS, VAL
from ups.runs.side_by_side import SideBySide, side_by_side
from ups.units import format_time

NOTHING, QUEUE = "–", "queue"
MOST_CHARS = 60  # of a value of a config in a table
# Told apart with every kind of colour vision, in this order. Runs of one setting share a colour.
LIGHT = ("#2a78d6", "#eb6834", "#1baf7a", "#b98900", "#e87ba4", "#008300", "#4a3aa7", "#e34948")
DARK = ("#3987e5", "#d95926", "#199e70", "#c98500", "#d55181", "#31a031", "#9085e9", "#e66767")
DASHES = ("none", "7 3", "2 3", "9 3 2 3")
STYLE = """
:root { color-scheme: light dark; --page: #fcfcfb; --card: #fff; --ink: #1d1d1b;
  --soft: #63625e; --grid: #e4e3df; --edge: #d5d4cf; }
body { margin: 0 auto; padding: 24px; max-width: 1240px; background: var(--page);
  color: var(--ink); font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 22px; margin: 0 0 4px; } h2 { font-size: 17px; margin: 28px 0 8px; }
h3 { font-size: 14px; margin: 0 0 4px; } p { color: var(--soft); margin: 0 0 12px; }
.grid { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(380px, 1fr)); }
.card, .wide { background: var(--card); border: 1px solid var(--edge); border-radius: 8px;
  padding: 12px; overflow-x: auto; }
table { border-collapse: collapse; white-space: nowrap; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 12px; text-align: left; border-bottom: 1px solid var(--grid); }
th { color: var(--soft); font-weight: 600; } td.number, th.number { text-align: right; }
tr:last-child td { border-bottom: 0; } td.best { font-weight: 700; }
.key { display: inline-block; width: 26px; height: 10px; vertical-align: middle;
  margin-right: 8px; } .key .line { stroke-width: 3; }
svg { display: block; width: 100%; height: auto; }
svg text { font: 11.5px system-ui, sans-serif; fill: var(--soft); paint-order: stroke;
  stroke: var(--card); stroke-width: 3px; stroke-linejoin: round; }
.legend span { display: inline-block; margin-right: 18px; }
line.grid { stroke: var(--grid); } line.end { stroke: var(--ink); stroke-dasharray: 4 3; }
line.median { stroke: var(--ink); stroke-width: 2; } .line { fill: none; stroke-width: 2; }
.mark { stroke: var(--card); stroke-width: 0.8; }
footer { margin-top: 28px; color: var(--soft); font-size: 13px; }
"""


def write_page(path: Path, files: Sequence[RunFiles], title: str) -> None:
    """Write the page of these runs; a reader sees the old one or the new."""
    write_atomically(path, compare_page(files, title).encode(), durable=False)


def compare_page(files: Sequence[RunFiles], title: str) -> str:
    """The page of these runs, as HTML."""
    found = side_by_side(files)
    now = datetime.now(UTC)
    sections = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{len(files)} runs. Rest on a mark to read it; times are UTC.</p>",
        _section("Runs", _wide(_runs(found))),
        _section("Config: what differs", _wide(_config(found))),
        _section("Test nRMSE, full rollout", _scores(found)),
        _section("Training", _curves(files, found)),
        _section("Startup", _startup(files, found)),
        f"<footer>Made at {now:%Y-%m-%d %H:%M:%S} UTC of {escape(_folders(found))}</footer>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{_colours(found.groups())}</style></head>\n"
        f"<body>{''.join(sections)}</body></html>\n"
    )


def _section(title: str, content: str) -> str:
    return f"\n<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def _wide(content: str) -> str:
    return f'<div class="wide">{content}</div>' if content else ""


def _runs(found: SideBySide) -> str:
    rows = []
    lowest = {
        name: min((v for v in values if v is not None), default=None)
        for name, values in (("val", found.best_val), ("test", found.nrmse))
    }
    for i, (run, title) in enumerate(zip(found.runs, found.titles(), strict=True)):
        val, test = found.best_val[i], found.nrmse[i]
        rows.append(
            [
                _cell(_key(i) + escape(title)),
                _cell(escape(run.id[-8:])),
                _cell(format_time(run.started_at)),
                _cell(run.state),
                _number(run.ttfs_s, ".2f", " s"),
                _cell({None: NOTHING, True: "reused", False: "built"}[run.cache_reused]),
                _cell(str(run.num_epochs), "number"),
                _number(val, ".4f", is_best=val is not None and val == lowest["val"]),
                _number(test, ".4f", is_best=test is not None and test == lowest["test"]),
            ]
        )
    heads = ("run", "id", "started", "state", TTFS, "cache", "epochs", "best val", "test nRMSE")
    return _table(heads, rows, numbers=(TTFS, "epochs", "best val", "test nRMSE"))


def _config(found: SideBySide) -> str:
    """Rows are whatever there is more of: keys, or runs; nothing where the runs' names say it."""
    if not found.config:
        return "<p>The configs are the same.</p>"
    if len(found.config) <= MOST_NAMED:
        return ""  # the names say it
    if len(found.config) > len(found.runs):
        keys = [_key(i) + escape(title) for i, title in enumerate(found.titles())]
        rows = [
            [_cell(f"<code>{escape(key)}</code>"), *(_cell(_value(v)) for v in values)]
            for key, values in found.config.items()
        ]
        return _table(("key", *keys), rows, is_html=True)
    rows = [
        [_cell(_key(i) + escape(title)), *(_cell(_value(v[i])) for v in found.config.values())]
        for i, title in enumerate(found.titles())
    ]
    return _table(("run", *found.config), rows)


def _scores(found: SideBySide) -> str:
    """Dots in a row for each setting: the spread over seeds beside what the setting does."""
    groups = found.groups()
    dots = [
        svg.Dot(i, title, groups[i], value)
        for i, (title, value) in enumerate(zip(found.titles(), found.nrmse, strict=True))
        if value is not None
    ]
    if len(dots) < 2:
        return ""
    several = len({dot.row for dot in dots}) < len(dots)
    words = "<p>A row for each setting, a dot for each run, a stroke at their median.</p>"
    content = (words if several else "") + svg.dot_chart(dots, "test nRMSE")
    return _wide(content + _problems(found))


def _problems(found: SideBySide) -> str:
    if not found.problems:
        return ""
    rows = [
        [
            _cell(_key(i) + escape(title)),
            *(_number(values[i], ".4f") for values in found.problems.values()),
        ]
        for i, title in enumerate(found.titles())
    ]
    return _table(("run", *found.problems), rows, numbers=tuple(found.problems))


def _curves(files: Sequence[RunFiles], found: SideBySide) -> str:
    charts = (
        ("train loss", LOSS, "epoch", _epochs),
        ("val nRMSE, full rollout", VAL, "epoch", _epochs),
        ("val nRMSE over time", VAL, "seconds since training began", _seconds),
    )
    cards, titles = [], found.titles()
    for title, name, x_name, x_of in charts:
        lines = [
            svg.Line(i, titles[i], x_of(each.epochs), _values(each.epochs, name))
            for i, each in enumerate(files)
            if each.epochs
        ]
        if lines:
            chart = svg.line_chart(lines, x_name, whole=x_of is _epochs)
            cards.append(f'<div class="card"><h3>{escape(title)}</h3>{chart}</div>')
    legend = "".join(
        f"<span>{_key(i)}{escape(title)}</span>" for i, title in enumerate(found.titles())
    )
    return (
        f'<p class="legend">{legend}</p><div class="grid">{"".join(cards)}</div>' if cards else ""
    )


def _epochs(rows: Sequence[dict[str, Any]]) -> list[float]:
    return [row["epoch"] for row in rows]


def _seconds(rows: Sequence[dict[str, Any]]) -> list[float]:
    """Since the first epoch began, validation included."""
    begun = rows[0]["time"] - rows[0].get("training/epoch_time_sec", 0.0)
    return [row["time"] - begun for row in rows]


def _values(rows: Iterable[dict[str, Any]], name: str) -> list[float]:
    """In the file, null stands for what is not finite."""
    return [math.nan if row.get(name) is None else row[name] for row in rows]


def _startup(files: Sequence[RunFiles], found: SideBySide) -> str:
    known = [(i, each.breakdown) for i, each in enumerate(files) if each.breakdown is not None]
    if not known:
        return ""
    present = {span.phase for _, of in known for span in of.spans}
    phases = [phase for phase in STARTUP_PHASES if phase in present and phase != QUEUE]
    queued_s = {i: of.phase_seconds.get(QUEUE, 0.0) for i, of in known}
    end = 1.02 * max(of.until_s - queued_s[i] for i, of in known)
    cards, titles = [], found.titles()
    for i, of in known:
        begun = of.triggered_at + queued_s[i]
        bars = [
            svg.Bar(
                *(span.phase, span.name, span.start - begun, span.end - begun),
                COLOURS.get(span.phase, "#888888"),
            )
            for span in of.spans
            if span.phase in phases
        ]
        chart = svg.phase_chart(bars, phases, of.phase_seconds, of.until_s - queued_s[i], end)
        begun_s = None if of.ttfs_s is None else of.ttfs_s - queued_s[i]
        ended = "no first step" if begun_s is None else f"{begun_s:.2f} s"
        head = f"<h3>{_key(i)}{escape(titles[i])}: {ended}</h3>"
        cards.append(f'<div class="card">{head}{chart}</div>')
    rows = [
        [_cell(_key(i) + escape(title)), *(_number(v[i], ".2f") for v in seconds)]
        for i, title in enumerate(found.titles())
        if (seconds := list(found.startup.values()))
    ]
    table = _table(("run", *found.startup), rows, numbers=tuple(found.startup))
    words = (
        "<p>Seconds; phases overlap. The bars begin at the end of the queue, where runs of one "
        "deployment wait for each other, and are on one scale; the stroke is the first step.</p>"
    )
    return f'{words}{_wide(table)}<div class="grid" style="margin-top:14px">{"".join(cards)}</div>'


def _folders(found: SideBySide) -> str:
    return ", ".join(run.folder.name for run in found.runs)


def _table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    numbers: Sequence[str] = (),
    *,
    is_html: bool = False,
) -> str:
    cells = "".join(
        f'<th class="number">{escape(head)}</th>'
        if head in numbers
        else f"<th>{head if is_html else escape(head)}</th>"
        for head in heads
    )
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


def _cell(content: str, kind: str = "") -> str:
    return f'<td class="{kind}">{content}</td>' if kind else f"<td>{content}</td>"


def _number(value: float | None, form: str, unit: str = "", *, is_best: bool = False) -> str:
    text = NOTHING if value is None else f"{value:{form}}{unit}"
    return _cell(text, "number best" if is_best else "number")


def _value(value: Any) -> str:
    text = NOTHING if value is None else json.dumps(value, ensure_ascii=False)
    shown = text if len(text) <= MOST_CHARS else f"{text[: MOST_CHARS - 1]}…"
    return f'<span title="{escape(text)}">{escape(shown)}</span>'


def _key(run: int) -> str:
    """What a run is drawn with, before its name."""
    line = '<path class="line" d="M1 5H25"/>'
    return f'<svg class="key run run-{run}" viewBox="0 0 26 10">{line}</svg>'


def _colours(groups: Sequence[str]) -> str:
    """The colour of each run, on light and on dark, and its dashes: by its group, and within it."""
    colours, dashes, dark = list(dict.fromkeys(groups)), [], []
    for run, group in enumerate(groups):
        place = colours.index(group)
        number = groups[:run].count(group) + place // len(LIGHT)
        place %= len(LIGHT)
        dashes.append(
            f".run-{run} {{ --run: {LIGHT[place]}; }} .run-{run} .mark {{ fill: var(--run); }} "
            f".run-{run} .line {{ stroke: var(--run); "
            f"stroke-dasharray: {DASHES[number % len(DASHES)]}; }}"
        )
        dark.append(f".run-{run} {{ --run: {DARK[place]}; }}")
    ink = (
        ":root { --page: #161615; --card: #1f1f1d; --ink: #f2f1ec; --soft: #a9a8a1; "
        "--grid: #33332f; --edge: #3a3a36; }"
    )
    media = f"@media (prefers-color-scheme: dark) {{ {ink} {' '.join(dark)} }}"
    return "\n".join([*dashes, media])
