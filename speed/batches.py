"""Batches: shuffled batches of 12 trajectories' pairs, from RAM, from disk, and before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from speed import inputs
from speed.harness import Comparison, alternate, ours_first
from speed.load import CACHE, CACHE_PT, NUM, legacy_files
from speed.measure import timed, warm_page_cache
from speed.settings import Settings
from ups.config import Features
from ups.latents import legacy
from ups.latents.build import ensure
from ups.latents.datasets import LatentDataset
from ups.latents.loader import load

BATCH, HORIZON = 12, 1
NOTES = [
    "Batches: one epoch, shuffled, 12 trajectories a batch, time stride 2, horizon 1; z0 and z1 of "
    "every pair are views that nobody touches. `pairs in fp32` is ours with "
    "z0 and z1 copied out to float32, which the training step does on its device.",
    "earlier preloaded way: a list of fp32 tensors, sliced into z0 and z1 per item and "
    "concatenated by the DataLoader's collate (no workers). `.pt` from disk: legacy mode's files, "
    "read for each batch, in the page cache.",
]


def prepare(settings: Settings) -> None:
    """Make the entry, and legacy mode's files."""
    num = settings.scaled(NUM)
    ensure(inputs.config(settings, CACHE), inputs.tiled_sources(settings, num))
    legacy_files(settings, num)


def run(settings: Settings) -> Iterator[Comparison]:
    num = settings.scaled(NUM)
    config = inputs.config(settings, CACHE, {"features.preload": "ram"})
    staged = inputs.tiled_sources(settings, num)
    of_problem = {inputs.PROBLEM: ensure(config, staged)}, {inputs.PROBLEM: staged}
    in_ram = load(config, *of_problem, device="cpu")
    disk = inputs.config(settings, CACHE, {"features.preload": "disk"})
    on_disk = load(disk, *of_problem, device="cpu")
    pt_files = legacy_files(settings, num)
    old = inputs.config(settings, CACHE_PT, {"features": Features.legacy().model_dump()})
    from_pt = legacy.load(old, of_problem[1], "cpu")
    warm_page_cache(pt_files[0].parent)
    samples = [torch.load(path, weights_only=True)["latent"].float() for path in pt_files]
    pairs = partial(sliced_pairs, config.training.time_stride)
    earlier = DataLoader[Any](samples, BATCH, shuffle=True, collate_fn=pairs)
    epochs: dict[str, Callable[[], int]] = {
        "ours": lambda: draw(in_ram.train),
        "ours, pairs in fp32": lambda: draw(in_ram.train, copied=True),
        "ours, disk tier": lambda: draw(on_disk.train),
        "earlier, preloaded": lambda: sum(len(z0) for z0, _ in earlier),
        ".pt from disk": lambda: draw(from_pt.train),
    }
    rates = {name: lambda epoch=epoch: num / timed(epoch) for name, epoch in epochs.items()}
    yield Comparison(
        phase=f"shuffled batches of {BATCH} trajectories' pairs, N = {num}",
        unit="trajectories/s",
        better="higher",
        results=alternate(ours_first(rates), settings.repeats),
        targets={".pt from disk": 12, "earlier, preloaded": 2},
        notes=NOTES,
    )
    in_ram.close()
    on_disk.close()


def draw(data: LatentDataset, copied: bool = False) -> int:
    """One epoch; returns the number of pairs."""
    count = 0
    for index_B in torch.randperm(len(data)).split(BATCH):
        z_BTKD = data.batch(index_B)
        z0, z1 = z_BTKD[:, :-HORIZON], z_BTKD[:, HORIZON:]
        if copied:
            z0, z1 = z0.flatten(0, 1).float(), z1.flatten(0, 1).float()
        count += z0.shape[0] * (1 if copied else z0.shape[1])
    return count


def sliced_pairs(time_stride: int, samples: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The pairs of all trajectories in a row, each sliced when it is asked for."""
    strided = [sample[::time_stride] for sample in samples]
    z0, z1 = [z[:-HORIZON] for z in strided], [z[HORIZON:] for z in strided]
    return torch.cat(z0), torch.cat(z1)
