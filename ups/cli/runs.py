"""`ups runs list | show | compare | prune`: what the runs' folders hold, as tables or as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ups.cli.console import errors_shown, print_json, print_table
from ups.cli.options import (
    RUNS_DIR,
    JsonOption,
    OtherRunArgument,
    RunArgument,
    RunsDirOption,
    checked,
)
from ups.cli.places import elsewhere
from ups.units import format_size, format_time, parse_age

if TYPE_CHECKING:
    from ups.runs.breakdown import Breakdown
    from ups.runs.compare import Change, RunComparison
    from ups.runs.index import RunFiles, RunSummary
    from ups.runs.stored import RunInfo

app = typer.Typer(no_args_is_help=True, help="The runs of this machine, by their folders.")

NOTHING = "–"


@app.command("list", epilog="Example: ups runs list --limit 5")
def list_runs(
    folder: RunsDirOption = RUNS_DIR,
    limit: Annotated[int, typer.Option(min=1, help="Show the newest only.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """List the runs, the newest first."""
    with errors_shown():
        from ups.runs.index import find_runs, short_ids

        found = find_runs(folder, limit + 1)
        shown = found[:limit]
        if as_json:
            print_json([run.model_dump(mode="json") for run in shown])
            return
        if not shown:
            typer.echo(f"no runs in {folder.absolute()}{elsewhere(RUNS_DIR, folder)}")
            return
        short = short_ids(folder, [run.id for run in shown])
        print_table(_rows(shown, short), right=("TTFS", "nRMSE", "epochs"))
        if len(found) > limit:
            typer.echo(f"… and older ones, which --limit {2 * limit} shows")
        typer.echo(f"in {folder.absolute()}")


@app.command(epilog="Example: ups runs show 136f --json")
def show(run: RunArgument, folder: RunsDirOption = RUNS_DIR, as_json: JsonOption = False) -> None:
    """Show one run: its end, startup, scores and machine."""
    with errors_shown():
        from ups.runs.index import find_run, read_run

        files = read_run(find_run(folder, run))
        breakdown = files.breakdown
        if as_json:
            print_json(
                {
                    "summary": files.summary().model_dump(mode="json"),
                    "run": files.info.model_dump(mode="json") if files.info else None,
                    "config": files.config,
                    "breakdown": breakdown.model_dump(mode="json") if breakdown else {},
                    "scores": files.scores,
                    "epochs": files.epochs,
                    "metrics": files.metrics,
                }
            )
        else:
            _show(files)


@app.command(epilog="Example: ups runs compare 136f 24fb")
def compare(
    before: RunArgument,
    after: OtherRunArgument,
    folder: RunsDirOption = RUNS_DIR,
    as_json: JsonOption = False,
) -> None:
    """Show what differs between two runs.

    Config, startup by phase, and test nRMSE.
    """
    with errors_shown():
        from ups.runs.compare import compare
        from ups.runs.index import find_run

        found = compare(find_run(folder, before), find_run(folder, after))
        if as_json:
            pairs = {key: {"before": a, "after": b} for key, (a, b) in found.config.items()}
            print_json({**found.model_dump(mode="json"), "config": pairs})
        else:
            _show_comparison(found)


@app.command(epilog="Example: ups runs prune --keep 100 --older-than 90d --dry-run")
def prune(
    keep: Annotated[
        int | None, typer.Option(min=0, help="Remove all but the newest 100, say.")
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(
            metavar="AGE",
            help="Remove what began longer ago than 90d, say.",
            callback=checked(parse_age),
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would go, and remove nothing.")
    ] = False,
    folder: RunsDirOption = RUNS_DIR,
    as_json: JsonOption = False,
) -> None:
    """Remove folders of runs by number and age.

    Their checkpoints go, too; a run that goes on stays. Without a limit nothing goes, and the size
    of all is said: runs are kept until you say so.
    """
    with errors_shown():
        from ups.runs.index import find_runs
        from ups.runs.prune import plan_prune, remove, size_of

        found = find_runs(folder)
        sizes = {run.id: size_of(run.folder) for run in found}
        older_than_s = parse_age(older_than) if older_than else None
        plan = plan_prune(found, keep=keep, older_than_s=older_than_s)
        gone = [run for run in plan if dry_run or remove(run.folder)]
        if as_json:
            print_json(
                [
                    {"folder": str(run.folder), "bytes": sizes[run.id], "removed": not dry_run}
                    for run in gone
                ]
            )
            return
        for run in gone:
            typer.echo(f"{run.folder}  {format_size(sizes[run.id])}")
        freed, held = sum(sizes[run.id] for run in gone), sum(sizes.values())
        did = "would remove" if dry_run else "removed"
        typer.echo(
            f"{did} {len(gone)} of {len(found)} runs, {format_size(freed)} of {format_size(held)}"
        )


def _rows(found: Iterable[RunSummary], short: dict[str, str]) -> list[dict[str, str]]:
    from ups.runs.table import CACHE

    return [
        {
            "id": short[run.id],
            "config": run.name,
            "started": format_time(run.started_at),
            "state": run.state,
            "TTFS": _seconds(run.ttfs_s),
            "cache": CACHE[run.cache_reused] or NOTHING,
            "nRMSE": NOTHING if run.nrmse_rollout is None else f"{run.nrmse_rollout:.4f}",
            "epochs": str(run.num_epochs),
        }
        for run in found
    ]


def show_breakdown(breakdown: Breakdown) -> None:
    """Print the tables of a startup and of the problems, and the key figures."""
    from ups.runs.table import NUMBERS, key_figures, problem_rows, startup_rows

    ttfs_s = breakdown.ttfs_s
    title = "Startup" if ttfs_s is None else f"Startup: {ttfs_s:.2f} s to the first step"
    print_table(startup_rows(breakdown), right=NUMBERS, title=title)
    if problems := problem_rows(breakdown):
        print_table(problems, right=NUMBERS, title="Problems")
    _print_facts(key_figures(breakdown))


def _show(files: RunFiles) -> None:
    from ups.runs.table import score_words

    run, info, breakdown = files.summary(), files.info, files.breakdown
    cause = (info.error if info else None) or (breakdown.failed if breakdown else None)
    cause = cause or "its test score is not finite"  # in what calls itself completed
    cause = cause if run.state in ("failed", "stopped") else None  # not an earlier attempt's
    attempt = f", attempt {info.attempt}" if info and info.attempt > 1 else ""
    facts = {
        "run": f"{run.id}, {run.name}",
        "folder": str(run.folder),
        "started": format_time(run.started_at) + attempt,
        "state": f"{run.state}: {cause}" if cause else run.state,
        "by": _caller(info) if info else "",
        "commit": run.commit,
        "versions": _facts(info.versions) if info else "",
        "machine": _facts(info.machine) if info else "",
        "epochs": str(run.num_epochs),
        "files": ", ".join(sorted(p.name for p in run.folder.iterdir() if p.name[0] != ".")),
    }
    _print_facts({name: fact for name, fact in facts.items() if fact})
    if breakdown is not None:
        show_breakdown(breakdown)
    # A run that was killed, or of an earlier version, may have left its scores alone.
    if run.nrmse_rollout is not None and (breakdown is None or breakdown.nrmse_rollout is None):
        persistence, each = files.scores.get("persistence_rollout", {}), files.nrmse_of_problems()
        words = score_words(run.nrmse_rollout, persistence.get("nRMSE"), is_mean=bool(each))
        of_problems = {f"  {name}": f"{nrmse:.4f}" for name, nrmse in each.items()}
        _print_facts({"test nRMSE": words, **of_problems})


def _print_facts(facts: Mapping[str, str]) -> None:
    width = max([11, *map(len, facts)])
    for name, fact in facts.items():
        typer.echo(f"{name:<{width}} {fact}")


def _show_comparison(found: RunComparison) -> None:
    for label, run in (("before", found.before), ("after", found.after)):
        started, commit = format_time(run.started_at), run.commit or "unknown"
        typer.echo(f"{label:<7} {run.id}  {run.name}, {started}, {run.state}, commit {commit}")
    if found.config:
        changed = [
            {"key": key, "before": _value(a), "after": _value(b)}
            for key, (a, b) in found.config.items()
        ]
        print_table(changed, title="Config")
    else:
        typer.echo("the configs are the same")
    rows = [
        {
            "phase": phase,
            "before": _seconds(change.before),
            "after": _seconds(change.after),
            "difference": _signed(change.difference, " s"),
        }
        for phase, change in found.startup.items()
    ]
    if rows:
        print_table(rows, right=("before", "after", "difference"), title="Startup")
    else:
        typer.echo("neither run left a breakdown of its startup")
    if found.nrmse.before is None and found.nrmse.after is None:
        typer.echo("neither run was scored")
        return
    typer.echo(f"test nRMSE over the full rollout  {_scores(found.nrmse)}")
    for name, change in found.problems.items():
        typer.echo(f"  {name:<31} {_scores(change)}")


def _scores(change: Change) -> str:
    texts = [NOTHING if s is None else f"{s:.4f}" for s in (change.before, change.after)]
    by = f" ({_signed(change.difference, digits=4)})" if change.difference is not None else ""
    return f"{texts[0]} → {texts[1]}{by}"


def _caller(info: RunInfo) -> str:
    parts = {"deployment": info.deployment, "flow run": info.flow_run_id}
    return info.command or ", ".join(f"{name} {value}" for name, value in parts.items() if value)


def _facts(facts: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def _seconds(seconds: float | None) -> str:
    return NOTHING if seconds is None else f"{seconds:.2f} s"


def _signed(value: float | None, unit: str = "", digits: int = 2) -> str:
    return NOTHING if value is None else f"{value:+.{digits}f}{unit}"


def _value(value: Any) -> str:
    return NOTHING if value is None else json.dumps(value, ensure_ascii=False)
