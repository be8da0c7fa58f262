"""What `ups data inspect` shows of a file: lines, or a row of a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from ups.cli.console import print_table
from ups.equations import EQUATIONS
from ups.units import format_size

if TYPE_CHECKING:
    from ups.data.inspect import Facts


def show(facts: Facts) -> None:
    """A line for each thing that is known."""
    for name, value in _rows(facts).items():
        typer.echo(f"{name:<12} {value}")
    _show_remarks(facts, "")


def show_many(found: list[Facts]) -> None:
    rows = []
    for facts in found:
        own = _rows(facts)
        names = ("size", "shape", "values", "times", "parameter", "range")
        state = "no" if facts.faults else "yes"
        rows.append({"file": facts.name, **{n: own.get(n, "") for n in names}, "trains": state})
    print_table(rows, right=("size",))
    for facts in found:
        _show_remarks(facts, f"{facts.name}: ")


def _show_remarks(facts: Facts, before: str) -> None:
    for line in facts.notes:
        typer.echo(f"! {before}{line}")
    for line in facts.faults:
        typer.echo(f"✗ {before}{line}")


def _rows(facts: Facts) -> dict[str, str]:
    """What is known, in words."""
    rows: dict[str, str] = {"file": facts.where, "size": format_size(facts.num_bytes)}
    rows["SHA-256"] = f"{facts.sha256 or '–'}, {facts.digest}"
    rows["holds"] = "; ".join(facts.members)
    if facts.data_set is not None:
        packed = f", packed by {', '.join(facts.compression)}" if facts.compression else ""
        rows["data set"] = facts.data_set
        rows["values"] = f"{facts.dtype}, {facts.storage}{packed}"
    if facts.shape is not None:
        num, num_frames, points = facts.shape
        rows["shape"] = f"{num} trajectories × {num_frames} frames × {points} points"
    rows |= _spans(facts)
    if facts.equation is not None and facts.parameter is not None:
        equation = EQUATIONS[facts.equation]
        value = f"{equation.symbol} = {facts.parameter:g}"
        rows["parameter"] = f"{equation.name}, {value} {facts.parameter_from}"
    return rows


def _spans(facts: Facts) -> dict[str, str]:
    rows: dict[str, Any] = {}
    if facts.dt is not None:
        span = "" if facts.times is None else f"{facts.times[0]:g} to {facts.times[1]:g}, "
        rows["times"] = f"{span}dt {facts.dt:g}"
    if facts.points is not None:
        rows["grid"] = f"x from {facts.points[0]:g} to {facts.points[1]:g}"
    if facts.sampled:
        rows["range"] = "no finite values"
        if facts.smallest is not None and facts.largest is not None:
            of = f"in {facts.sampled} sampled trajectories"
            rows["range"] = f"{facts.smallest:.4g} to {facts.largest:.4g} {of}"
    return rows
