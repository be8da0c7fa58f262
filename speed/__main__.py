"""Measure the speed of each phase, and operators: `python -m speed cpu`, `gpu` or `operators`."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from speed import inputs
from speed.harness import Comparison, Result
from speed.report import Report, print_table
from speed.settings import DEFAULT, Settings
from speed.worker import describe
from ups.machine import host
from ups.units import format_time

# Of each suite: section → the module and the function that measure it.
SECTIONS = {
    "cpu": {
        name: f"{name}.run"
        for name in (
            *("download", "cache", "load", "batches", "boot", "startup", "busy", "stream"),
            *("growth", "larger", "shared", "ranks"),
        )
    },
    "gpu": {
        "gpu_encode": "cache.run_gpu",
        "gpu_load": "load.run_gpu",
        "gpu_train": "train.run",
        "gpu_startup": "startup.run_gpu",
    },
    "operators": {"operators": "operators.run", "choice": "operators.choose"},
}
# These have `prepare`, which is not timed.
PREPARED = ("download", "load", "batches", "stream", "larger", "shared", "ranks")
ON_REQUEST = ("choice",)  # run only where --sections names them


def main(arguments: list[str] | None = None) -> int:
    given = _parse(arguments)
    sections = SECTIONS[given.suite]
    usual = [name for name in sections if name not in ON_REQUEST]
    chosen = given.sections.split(",") if given.sections else usual
    if unknown := set(chosen) - set(sections):
        print(f"--sections: found {', '.join(sorted(unknown))}; expected {', '.join(sections)}")
        return 2
    settings = Settings(**{field.name: getattr(given, field.name) for field in fields(Settings)})
    return run(settings, given.suite, chosen)


def run(settings: Settings, suite: str, chosen: list[str]) -> int:
    """Measure the sections one after the other; each is written as soon as it is done."""
    settings.folder.mkdir(parents=True, exist_ok=True)
    out = settings.results
    kind = host.kind(settings.device) + ("" if settings.is_default else "-trial")
    kind += "-gpu-script" if suite == "gpu" and settings.device == "cpu" else ""
    kind = f"operators-{kind}" if suite == "operators" else kind
    report = Report.load_or_new(out, kind, host.record(settings.folder))
    _make_inputs(settings, suite, chosen)
    commit = host.commit()  # the results that are written change the working tree
    begin, failed = time.monotonic(), False
    for section in chosen:
        started, load = time.monotonic(), round(os.getloadavg()[0], 2)
        print(f"{section} …", flush=True)
        rows: list[Comparison] = []
        try:
            for row in _find(SECTIONS[suite][section])(settings):
                rows.append(row)
                print(f"  {row.phase}: {time.monotonic() - started:.0f} s", flush=True)
        except Exception as error:  # noqa: BLE001 (the row says so; the other sections go on)
            failed = True
            print(f"  {section} failed: {describe(error)}", file=sys.stderr)
            broken = Result("ours", "ours", failed=describe(error))
            rows.append(Comparison(f"{section}, the rest of it", [broken], unit=""))
        how = {
            "measured": format_time(time.time()),
            "commit": commit,
            "with": settings.describe(),
            "seconds": round(time.monotonic() - started),
            "load before": load,
        }
        report.add(section, rows, how)
        report.save(out, list(SECTIONS[suite]))
    print_table(report, chosen)
    print(f"{time.monotonic() - begin:.0f} s; written to {out / kind}.json and .md")
    return int(failed)


def _make_inputs(settings: Settings, suite: str, chosen: list[str]) -> None:
    started = time.monotonic()
    if suite != "operators":
        if suite == "cpu":
            path = inputs.tiled_set(settings)
            what = f"{settings.num_solved} solved trajectories tiled with random periodic shifts"
        else:
            path, what = inputs.solved_set(settings), "each trajectory solved"
        seconds = time.monotonic() - started
        print(f"inputs: {path.name}, {what} ({seconds:.1f} s, not timed)", flush=True)
    for section in chosen:
        started = time.monotonic()
        if section in PREPARED:
            _find(f"{section}.prepare")(settings)
            seconds = time.monotonic() - started
            print(f"inputs of {section} ({seconds:.1f} s, not timed)", flush=True)


def _find(function: str) -> Callable[[Settings], Any]:
    module, _, name = function.partition(".")
    found: Callable[[Settings], Any] = getattr(importlib.import_module(f"speed.{module}"), name)
    return found


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m speed", description=__doc__)
    parser.add_argument("suite", choices=tuple(SECTIONS))
    parser.add_argument("--sections", help="; ".join(",".join(s) for s in SECTIONS.values()))
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--size", type=float, help="factor on trajectories and bytes")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--folder", type=_absolute, help="inputs and scratch")
    parser.add_argument("--out", type=_absolute, dest="results", help="where results go")
    parser.add_argument("--peers", type=_absolute, help="their Python")
    parser.add_argument("--solved", type=int, dest="num_solved", help="trajectories")
    parser.add_argument("--frames", type=int, dest="num_frames")
    parser.add_argument("--points", type=int, dest="grid_points")
    defaults = {field.name: getattr(DEFAULT, field.name) for field in fields(Settings)}
    parser.set_defaults(**{**defaults, "device": "auto"})
    given = parser.parse_args(arguments)
    if given.device == "auto":
        given.device = "cuda" if given.suite == "gpu" else "cpu"
    if given.suite == "cpu" and given.device != "cpu":
        parser.error("the suite cpu runs on --device cpu; expected `gpu --device cuda`")
    return given


def _absolute(path: str) -> Path:
    return Path(path).absolute()  # a venv's Python is a link, which must not be followed


if __name__ == "__main__":
    logging.getLogger("ups").setLevel(logging.WARNING)
    sys.exit(main())
