"""`ups runs list | show | compare`: what the runs' folders tell, as tables or as JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ups.cli_options import RUNS_DIR, JsonOption, OtherRunArgument, RunArgument, RunsDirOption
from ups.console import errors_shown, print_json, print_table

if TYPE_CHECKING:
    from ups.runs import RunInfo
    from ups.runs_index import Change, RunComparison, RunFiles, RunSummary

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
        from ups.runs_index import find_runs, short_ids

        found = find_runs(folder, limit + 1)
        shown = found[:limit]
        if as_json:
            print_json([run.model_dump(mode="json") for run in shown])
            return
        if not shown:
            typer.echo(f"no runs in {folder}")
            return
        short = short_ids(folder, [run.id for run in shown])
        print_table(_rows(shown, short), right=("TTFS", "nRMSE", "epochs"))
        if len(found) > limit:
            typer.echo(f"… and older ones, which --limit {2 * limit} shows")


@app.command(epilog="Example: ups runs show 136f --json")
def show(run: RunArgument, folder: RunsDirOption = RUNS_DIR, as_json: JsonOption = False) -> None:
    """Show a run: how it ended, where its startup went, what it scored, what it ran on."""
    with errors_shown():
        from ups.runs_index import find_run, read_run

        files = read_run(find_run(folder, run))
        if as_json:
            print_json(
                {
                    "summary": files.summary().model_dump(mode="json"),
                    "run": files.info.model_dump(mode="json") if files.info else None,
                    "config": files.config,
                    "breakdown": files.breakdown,
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
    """Show what differs between two runs: config, startup by phase, and test nRMSE."""
    with errors_shown():
        from ups.runs_index import compare, find_run

        found = compare(find_run(folder, before), find_run(folder, after))
        if as_json:
            print_json(_as_tree(found))
        else:
            _show_comparison(found)


def _rows(found: Iterable[RunSummary], short: dict[str, str]) -> list[dict[str, str]]:
    words = {None: NOTHING, True: "reused", False: "built"}
    return [
        {
            "id": short[run.id],
            "config": run.name,
            "started": _moment(run.started_at),
            "state": run.state,
            "TTFS": _seconds(run.ttfs_s),
            "cache": words[run.cache_reused],
            "nRMSE": NOTHING if run.nrmse_rollout is None else f"{run.nrmse_rollout:.4f}",
            "epochs": str(run.num_epochs),
        }
        for run in found
    ]


def _show(files: RunFiles) -> None:
    from ups.telemetry.gpu import words_of_record

    run, info, breakdown = files.summary(), files.info, files.breakdown
    cause = (info.error if info else None) or breakdown.get("failed")
    cause = cause if run.state in ("failed", "stopped") else None  # not an earlier attempt's
    facts = {
        "run": f"{run.id}, {run.name}",
        "folder": str(run.folder),
        "started": f"{_moment(run.started_at)}{_attempt(info)}",
        "state": f"{run.state}: {cause}" if cause else run.state,
        "by": _caller(info) if info else "",
        "commit": run.commit,
        "versions": _facts(info.versions) if info else "",
        "machine": _facts(info.machine) if info else "",
        "epochs": str(run.num_epochs),
        "GPU": words_of_record(breakdown),
        "test nRMSE": _nrmse(files),
        **{f"  {name}": _both(*pair) for name, pair in files.nrmse_of_tasks().items()},
        "files": ", ".join(sorted(p.name for p in run.folder.iterdir() if p.name[0] != ".")),
    }
    width = max(11, *map(len, facts))
    for name, fact in facts.items():
        if fact:
            typer.echo(f"{name:<{width}} {fact}")
    if phases := breakdown.get("phases"):
        rows = [
            {
                "phase": row["phase"],
                "seconds": _seconds(row["seconds"]),
                "share": NOTHING if row["share"] is None else f"{row['share']:.0%}",
                "what bounds it": row["bound"],
            }
            for row in phases
        ]
        title = (
            "Startup" if run.ttfs_s is None else f"Startup: {run.ttfs_s:.2f} s to the first step"
        )
        print_table(rows, right=("seconds", "share"), title=title)


def _show_comparison(found: RunComparison) -> None:
    for label, run in (("before", found.before), ("after", found.after)):
        moment, commit = _moment(run.started_at), run.commit or "unknown"
        typer.echo(f"{label:<7} {run.id}  {run.name}, {moment}, {run.state}, commit {commit}")
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
    for name, change in found.tasks.items():
        typer.echo(f"  {name:<31} {_scores(change)}")


def _scores(change: Change) -> str:
    texts = [NOTHING if s is None else f"{s:.4f}" for s in (change.before, change.after)]
    by = f" ({_signed(change.difference, digits=4)})" if change.difference is not None else ""
    return f"{texts[0]} → {texts[1]}{by}"


def _as_tree(found: RunComparison) -> dict[str, Any]:
    """The comparison with the differences, which are not stored."""
    tree: dict[str, Any] = found.model_dump(mode="json")
    for phase, change in found.startup.items():
        tree["startup"][phase]["difference"] = change.difference
    tree["nrmse"]["difference"] = found.nrmse.difference
    for name, change in found.tasks.items():
        tree["tasks"][name]["difference"] = change.difference
    tree["config"] = {key: {"before": a, "after": b} for key, (a, b) in found.config.items()}
    return tree


def _nrmse(files: RunFiles) -> str:
    nrmse = files.summary().nrmse_rollout
    persistence = files.scores.get("persistence_rollout", {}).get("nRMSE")
    if nrmse is None:
        return ""
    text = f"{nrmse:.4f} over the full rollout"
    if files.nrmse_of_tasks():
        text += ", the mean over the tasks"
    return text if persistence is None else f"{text}; persistence {persistence:.4f}"


def _both(nrmse: float, persistence: float) -> str:
    return f"{nrmse:.4f}; persistence {persistence:.4f}"


def _caller(info: RunInfo) -> str:
    parts = {"deployment": info.deployment, "flow run": info.flow_run_id}
    return info.command or ", ".join(f"{name} {value}" for name, value in parts.items() if value)


def _attempt(info: RunInfo | None) -> str:
    return f", attempt {info.attempt}" if info and info.attempt > 1 else ""


def _facts(facts: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def _moment(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))


def _seconds(seconds: float | None) -> str:
    return NOTHING if seconds is None else f"{seconds:.2f} s"


def _signed(value: float | None, unit: str = "", digits: int = 2) -> str:
    return NOTHING if value is None else f"{value:+.{digits}f}{unit}"


def _value(value: Any) -> str:
    return NOTHING if value is None else json.dumps(value, ensure_ascii=False)
