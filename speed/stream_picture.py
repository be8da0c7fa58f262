"""The picture of `stream`: time to the first step against the size of the data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from speed.harness import Comparison

STALL_S = 60.0  # Mosaic Streaming waits so long where an earlier run of it was killed
COLOURS = {
    "streaming": "#c0392b",
    "sequential": "#e59866",
    "boto3 + h5py": "#777777",
    "LitData": "#1f5fa8",
    "Mosaic Streaming": "#2e8b57",
}


def draw(sizes_gb: Sequence[float], panels: Mapping[str, Sequence[Comparison]], path: Path) -> None:
    """A panel for each link, a line for each contender: median, least and most.

    Runs that stalled are left out, which the title says; the table has them.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(panels), 4.8), layout="constrained")
    num_stalled = 0
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for panel, (link, rows) in zip(axes, panels.items(), strict=True):
        for results in zip(*(row.results for row in rows), strict=True):
            measured = []
            for size, result in zip(sizes_gb, results, strict=True):
                went_on = [seconds for seconds in result.values if seconds < STALL_S]
                num_stalled += len(result.values) - len(went_on)
                if went_on:
                    measured.append((size, went_on))
            if not measured:
                continue
            name = results[0].name
            middle = np.array([np.median(values) for _, values in measured])
            least = np.array([min(values) for _, values in measured])
            most = np.array([max(values) for _, values in measured])
            panel.errorbar(
                [size for size, _ in measured],
                middle,
                [middle - least, most - middle],
                label=name,
                color=COLOURS[name],
                marker="o",
                markersize=4,
                capsize=3,
                linewidth=2.2 if results[0].role == "ours" else 1.4,
            )
        panel.set_title(link)
        panel.set_xticks(sizes_gb, [f"{size:.2g}" for size in sizes_gb])
        panel.set_xlabel("GB to train on")
        panel.set_xlim(0)
        panel.grid(alpha=0.3, linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelleft=True)
    axes[0].set_ylim(0)
    axes[0].set_ylabel("s from the start of the process to the first step")
    axes[0].legend(frameon=False)
    title = "Time to the first step, nothing cached: median, least and most"
    if num_stalled:
        title += (
            f"\n{num_stalled} runs that stalled for {STALL_S:.0f} s, see the table, are left out"
        )
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
