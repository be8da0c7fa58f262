"""The picture of `stream`: time to the first step against the size of the data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from speed.harness import Comparison

COLOURS = {
    "streaming": "#c0392b",
    "sequential": "#e59866",
    "boto3 + h5py": "#777777",
    "LitData": "#1f5fa8",
    "Mosaic Streaming": "#2e8b57",
}


def draw(sizes_gb: Sequence[float], panels: Mapping[str, Sequence[Comparison]], path: Path) -> None:
    """A panel for each link, a line for each contender: median, least and most."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(panels), 4.8), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for panel, (link, rows) in zip(axes, panels.items(), strict=True):
        for results in zip(*(row.results for row in rows), strict=True):
            measured = [(s, r.values) for s, r in zip(sizes_gb, results, strict=True) if r.values]
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
        panel.set_ylim(0)
        panel.grid(alpha=0.3, linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelleft=True)
    axes[0].set_ylabel("s from the start of the process to the first step")
    axes[0].legend(frameon=False)
    figure.suptitle("Time to the first step, nothing cached: median, least and most")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
