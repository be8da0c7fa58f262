"""Run benchmarks: `python -m benchmarks cpu` and `python -m benchmarks gpu`."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import time
from pathlib import Path

from benchmarks.harness import Comparison, Result, describe
from benchmarks.report import Report, print_table
from benchmarks.settings import DEFAULT, Settings
from ups.telemetry import machine

CPU_SECTIONS = ("download", "cache", "load", "batches", "boot", "startup", "growth")
GPU_SECTIONS = ("gpu_encode", "gpu_load", "gpu_train", "gpu_startup")


def main(arguments: list[str] | None = None) -> int:
    given = _parse(arguments)
    sections = CPU_SECTIONS if given.suite == "cpu" else GPU_SECTIONS
    chosen = given.sections.split(",") if given.sections else list(sections)
    if unknown := set(chosen) - set(sections):
        print(f"--sections: found {', '.join(sorted(unknown))}; expected {', '.join(sections)}")
        return 2
    settings = Settings(
        folder=given.folder.resolve(),
        repeats=given.repeats,
        size=given.size,
        device=given.device,
        num_solved=given.solved,
        num_frames=given.frames,
        grid_points=given.points,
        peers=given.peers.absolute(),
        results=given.out.resolve(),
    )
    return run(settings, given.suite, chosen, sections)


def run(settings: Settings, suite: str, chosen: list[str], order: tuple[str, ...]) -> int:
    """Measure the sections one after the other; each is written as soon as it is done."""
    settings.folder.mkdir(parents=True, exist_ok=True)
    out = settings.results
    kind = machine.kind(settings.device) + ("" if settings.is_default else "-trial")
    kind += "-gpu-script" if suite == "gpu" and settings.device == "cpu" else ""
    report = Report.load_or_new(out, kind, machine.record(settings.folder))
    _make_inputs(settings, suite, chosen)
    commit = machine.commit()  # the results that are written change the working tree
    begin, failed = time.monotonic(), False
    for section in chosen:
        started, load = time.monotonic(), machine.load_average()
        print(f"{section} …", flush=True)
        rows: list[Comparison] = []
        try:
            for row in importlib.import_module(f"benchmarks.{section}").run(settings):
                rows.append(row)
                print(f"  {row.phase}: {time.monotonic() - started:.0f} s", flush=True)
        except Exception as error:  # noqa: BLE001 (the row says so; the other sections go on)
            failed = True
            print(f"  {section} failed: {describe(error)}", file=sys.stderr)
            broken = Result("ours", "ours", failed=describe(error))
            rows.append(Comparison(section, f"{section}, the rest of it", "", "lower", [broken]))
        how = {
            "measured": time.strftime("%Y-%m-%d %H:%M %Z"),
            "commit": commit,
            "with": settings.describe(),
            "seconds": round(time.monotonic() - started),
            "load before": load,
        }
        report.add(section, rows, how)
        report.save(out, order)
    print_table(report, chosen)
    print(f"{time.monotonic() - begin:.0f} s; written to {out / kind}.json and .md")
    return int(failed)


def _make_inputs(settings: Settings, suite: str, chosen: list[str]) -> None:
    from benchmarks import fixture, gpu_data

    started = time.monotonic()
    if suite == "cpu":
        path = fixture.trajectories(settings)
        what = f"{settings.num_solved} solved trajectories tiled with random periodic shifts"
    else:
        path, what = gpu_data.data_set(settings), "each trajectory solved"
    seconds = time.monotonic() - started
    print(f"inputs: {path.name}, {what} ({seconds:.1f} s, not timed)", flush=True)
    for section in chosen:
        started = time.monotonic()
        prepare = getattr(importlib.import_module(f"benchmarks.{section}"), "prepare", None)
        if prepare is not None:
            prepare(settings)
            seconds = time.monotonic() - started
            print(f"inputs of {section} ({seconds:.1f} s, not timed)", flush=True)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    default = DEFAULT
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("suite", choices=("cpu", "gpu"))
    parser.add_argument("--sections", help=f"{','.join(CPU_SECTIONS)}; {','.join(GPU_SECTIONS)}")
    parser.add_argument("--repeats", type=int, default=default.repeats)
    parser.add_argument("--size", type=float, default=1.0, help="factor on trajectories and bytes")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--folder", type=Path, default=default.folder, help="inputs and scratch")
    parser.add_argument("--out", type=Path, default=default.results, help="where results go")
    parser.add_argument("--peers", type=Path, default=default.peers, help="their Python")
    parser.add_argument("--solved", type=int, default=default.num_solved, help="trajectories")
    parser.add_argument("--frames", type=int, default=default.num_frames)
    parser.add_argument("--points", type=int, default=default.grid_points)
    given = parser.parse_args(arguments)
    if given.device == "auto":
        given.device = "cuda" if given.suite == "gpu" else "cpu"
    if given.suite == "cpu" and given.device != "cpu":
        parser.error("the suite cpu runs on --device cpu; expected `gpu --device cuda`")
    return given


if __name__ == "__main__":
    logging.getLogger("ups").setLevel(logging.WARNING)
    sys.exit(main())
