"""A run's breakdown as tables, key figures and Markdown: the same wherever a person reads it.

A table is a list of rows with the same keys, which are its headings: what the console prints and
what Prefect's table artifact takes.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from ups.runs.breakdown import IDLE, STOPPED, TO_FIRST_STEP, Breakdown, provision_s

Row = Mapping[str, str]
STARTUP = ("phase", "seconds", "share", "what bounds it")
SCORES = ("test nRMSE", "persistence")
GPU_USE = ("busy", "p10", "at 0 %", "memory, MB", "power, W", "samples")
NUMBERS = (*STARTUP[1:3], *SCORES, *GPU_USE)  # the columns that are set to the right
BRIEF = 0.01  # of the time to the first step: what takes less is left out of a line
FAILED, DONE = "Failed", ("Completed", "Cached")  # states of a task
WORK = ("download", "cache", "load", "train", "evaluate")  # phases that a whole run has
CACHE = {None: "", True: "reused", False: "built"}


def headline(breakdown: Breakdown) -> str:
    """A run's startup in one line."""
    if breakdown.ttfs_s is None and breakdown.failed is None:
        return f"{breakdown.config}: all steps were taken before, none was left to take"
    if breakdown.ttfs_s is None:
        return f"{breakdown.config}: {_ended(breakdown)} after {breakdown.until_s:.1f} s"
    if breakdown.failed is not None:
        step = f"after a first step at {breakdown.ttfs_s:.2f} s"
        return f"{breakdown.config}: {_ended(breakdown)}, {step}"
    before = provision_s(breakdown.provision)
    provisioned = f" after {before:.1f} s of provisioning" if before else ""
    cache = CACHE[breakdown.cache_reused]  # of a run that goes on, it is not known yet
    return (
        f"{breakdown.config}: time to first step {breakdown.ttfs_s:.2f} s{provisioned}, "
        f"{f'cache {cache}, ' if cache else ''}${breakdown.cost_usd:.4f}"
    )


def _ended(breakdown: Breakdown) -> str:
    """`failed in 1 download [val]`, `stopped`."""
    if breakdown.failed == STOPPED:
        return "stopped"
    names = _names(breakdown, FAILED)
    return f"failed in {names[0]}" if names else "failed"


def _how_far(breakdown: Breakdown) -> str:
    """What was done, what it stopped in and what it did not begin, of a run that did not end."""
    begun = {span.phase for span in breakdown.spans}
    ended = {
        "done": _names(breakdown, *DONE),
        "failed": _names(breakdown, FAILED),
        "cut short": _names(breakdown, "Cancelled", "Running", "Crashed"),
        "not begun": [phase for phase in WORK if phase not in begun],
    }
    return "; ".join(f"{how}: {', '.join(names)}" for how, names in ended.items() if names)


def _names(breakdown: Breakdown, *states: str) -> list[str]:
    """The tasks that ended so, in the order of their beginning; those of Prefect's own left out."""
    return [
        span.name
        for span in breakdown.spans
        if span.state in states and span.phase not in ("queue", "boot")
    ]


def startup_values(breakdown: Breakdown) -> list[tuple[str, float | None, float | None, str]]:
    """The table of the startup as numbers, under `STARTUP`: a row per phase, the GPU's at the end.

    Shares are of the time from the trigger on; the GPU has neither seconds nor a share.
    """
    rows = [(row.phase, row.seconds, row.share, row.bound) for row in breakdown.phases]
    gpu = [("GPU", None, None, breakdown.gpu_words)] if breakdown.gpu_words else []
    return [*rows, *gpu]


def startup_rows(breakdown: Breakdown) -> list[Row]:
    """The table of the startup as text."""
    return [
        dict(zip(STARTUP, (phase, _text(seconds, ".2f"), _text(share, ".0%"), bound), strict=True))
        for phase, seconds, share, bound in startup_values(breakdown)
    ]


def problem_rows(breakdown: Breakdown) -> list[Row]:
    """A row per problem; none where one problem is the whole."""
    return [
        {
            "problem": name,
            "cache entry": problem.config_hash or "",
            "cache": CACHE[problem.cache_reused],
            "test nRMSE": _text(problem.nrmse_rollout, ".4f"),
            "persistence": _text(problem.nrmse_persistence, ".4f"),
        }
        for name, problem in breakdown.problems.items()
    ]


def gpu_rows(breakdown: Breakdown) -> list[Row]:
    """What the GPU did in each phase; none without samples."""
    return [
        {
            "phase": phase,
            "busy": f"{use.mean_pct:.0f} %",
            "p10": f"{use.p10_pct:.0f} %",
            "at 0 %": f"{use.idle_share:.0%}",
            "memory, MB": f"{use.max_memory_mb:,.0f}",
            "power, W": _text(use.mean_power_w, ".0f"),
            "samples": str(use.num_samples),
        }
        for phase, use in (breakdown.gpu or {}).items()
    ]


def key_figures(breakdown: Breakdown) -> dict[str, str]:
    """What a run came to, by name, as far as it got."""
    figures = {}
    if breakdown.failed is not None:
        figures["came as far as"] = _how_far(breakdown)
    if breakdown.ttfs_s is not None:
        also = " with its provisioning" if breakdown.provision else ""
        figures["time to first step"] = (
            f"{breakdown.ttfs_s:.2f} s "
            f"(${breakdown.cost_usd:.4f}{also} at the config's price per hour)"
        )
    if breakdown.waited_for:
        figures["the first step waited for"] = _waited_for(breakdown.waited_for)
    if breakdown.idle_s is not None:
        figures[IDLE] = (
            f"{breakdown.idle_s:.2f} s, {breakdown.waited_s or 0:.2f} s of it for rows on their way"
        )
    if (from_start_s := breakdown.phase_seconds.get(TO_FIRST_STEP)) is not None:
        figures["of a rented machine"] = f"{from_start_s:.2f} s from its script's start"
    if breakdown.cache_reused is not None:
        key = "" if breakdown.problems else breakdown.config_hash
        entry = f", entry {key}" if key else ""
        changed = f": {'; '.join(breakdown.changed)}" if breakdown.changed else ""
        figures["latent cache"] = f"{CACHE[breakdown.cache_reused]}{entry}{changed}"
    if breakdown.nrmse_rollout is not None:
        figures["test nRMSE"] = score_words(
            breakdown.nrmse_rollout, breakdown.nrmse_persistence, is_mean=bool(breakdown.problems)
        )
    return {**figures, **breakdown.awaited}


def _waited_for(seconds: Mapping[str, float]) -> str:
    """`boot 0.86 s, load 0.61 s, first step 0.25 s`, without what is brief."""
    least_s = BRIEF * math.fsum(seconds.values())
    return ", ".join(f"{phase} {s:.2f} s" for phase, s in seconds.items() if s >= least_s)


def score_words(nrmse: float, persistence: float | None, *, is_mean: bool) -> str:
    """A test score, and how far behind it persistence is.

    Args:
        is_mean: over several problems.
    """
    number = f"{nrmse:.4f}" if math.isfinite(nrmse) else "not finite"
    text = f"{number} over the full rollout{', the mean over the problems' if is_mean else ''}"
    if persistence is None or not math.isfinite(nrmse):
        return text
    times = f", {persistence / nrmse:.1f} times as much" if nrmse else ""
    return f"{text}; persistence {persistence:.4f}{times}"


def to_markdown(
    breakdown: Breakdown, gantt: bytes | None = None, predictions: Mapping[str, Path] | None = None
) -> str:
    """All of a breakdown, pictures included.

    Args:
        gantt: a PNG file's bytes; None: without it.
        predictions: title → PNG file.
    """
    blocks = [f"## {headline(breakdown)}"]
    if breakdown.failed:
        label = "Stopped" if breakdown.failed == STOPPED else "Failed"
        reason = breakdown.failed.replace("\n", "\n- ")  # faults of a config: one a line
        blocks.append(f"**{label}:** {reason}")
    if gantt is not None:
        blocks.append(markdown_image("phases up to the first step", gantt))
    blocks.append(markdown_table(startup_rows(breakdown)))
    blocks.append("Phases overlap: shares may add up to more than 100 %.")
    figures = {"run folder": breakdown.run, **key_figures(breakdown)}
    blocks.append("\n".join(f"- {name}: {text}" for name, text in figures.items()))
    blocks += [markdown_table(problem_rows(breakdown)), markdown_table(gpu_rows(breakdown))]
    for title, path in (predictions or {}).items():
        blocks.append(f"**{title}**" if breakdown.problems else "")
        blocks.append(markdown_image("truth, prediction and error", path.read_bytes()))
    return "\n\n".join(block for block in blocks if block)


def markdown_table(rows: Sequence[Row], right: Sequence[str] = NUMBERS) -> str:
    """Rows under their headings; empty without rows.

    Args:
        right: headings of the columns that are set to the right.
    """
    if not rows:
        return ""
    sides = ["--:" if name in right else ":--" for name in rows[0]]
    cells = [[t.replace("|", "\\|").replace("<", "&lt;") for t in row.values()] for row in rows]
    lines = [list(rows[0]), sides, *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown_image(text: str, png: bytes) -> str:
    """A picture that lies in the text itself."""
    return f"![{text}](data:image/png;base64,{base64.b64encode(png).decode()})"


def _text(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
