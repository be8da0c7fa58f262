"""Show the breakdown that a run leaves in its folder: where the time before the first step went."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID

from deployments.layout import PROJECT_DIR
from ups.console import print_table
from ups.runs import find_run_dir
from ups.telemetry.gpu import words_of_record
from ups.telemetry.phases import TO_FIRST_STEP


def read(runs_dir: Path, run_id: str) -> dict[str, Any] | None:
    """`breakdown.json` in the folder of a flow run; None if it is not there."""
    folder = find_run_dir(PROJECT_DIR / runs_dir, UUID(run_id))
    if folder is None or not (folder / "breakdown.json").exists():
        return None
    found: dict[str, Any] = json.loads((folder / "breakdown.json").read_text())
    return found


def show(breakdown: dict[str, Any]) -> None:
    rows = [
        {
            "phase": row["phase"],
            "seconds": f"{row['seconds']:.2f}",
            "share": "" if row.get("share") is None else f"{row['share']:.0%}",
            "bound by": row.get("bound") or "",
        }
        for row in breakdown.get("phases", [])
    ]
    if rows:
        print_table(rows, right=("seconds", "share"), title="Startup overhead")
    if tasks := breakdown.get("tasks"):
        print_table(_task_rows(tasks), right=("test nRMSE", "persistence"), title="Tasks")
    for line in key_figures(breakdown):
        print(line)


def _task_rows(tasks: dict[str, Any]) -> list[dict[str, str]]:
    words = {None: "", True: "reused", False: "built"}
    return [
        {
            "task": name,
            "cache entry": f"{task['config_hash'] or ''} {words[task['cache_reused']]}".strip(),
            "test nRMSE": _four_digits(task["nrmse_rollout"]),
            "persistence": _four_digits(task["nrmse_persistence"]),
        }
        for name, task in tasks.items()
    ]


def _four_digits(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def key_figures(breakdown: dict[str, Any]) -> list[str]:
    lines = []
    if (ttfs_s := breakdown.get("ttfs_s")) is not None:
        cost = breakdown.get("cost_usd")
        also = " with its provisioning" if breakdown.get("provision") else ""
        dollars = "" if cost is None else f" (${cost:.4f}{also} at the config's price per hour)"
        lines.append(f"time to first step  {ttfs_s:.2f} s{dollars}")
    seconds = {row["phase"]: row["seconds"] for row in breakdown.get("phases", [])}
    if (from_start_s := seconds.get(TO_FIRST_STEP)) is not None:
        lines.append(f"of a rented machine {from_start_s:.2f} s from its script's start")
    if (reused := breakdown.get("cache_reused")) is not None:
        lines.append(f"latent cache        {'reused' if reused else 'built'}")
    if words := words_of_record(breakdown):
        lines.append(f"GPU                 {words}")
    if (nrmse := breakdown.get("nrmse_rollout")) is not None:
        line = f"test nRMSE          {nrmse:.4f} over the full rollout"
        if bar := breakdown.get("nrmse_persistence"):
            line += f"; persistence {bar:.4f}, {bar / nrmse:.1f} times as much"
        lines.append(line)
    return lines
