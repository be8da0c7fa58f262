"""Batches: shuffled batches of 12 trajectories' pairs, from RAM, from disk, and before."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks import fixture
from benchmarks.fixture import TASK
from benchmarks.harness import Comparison, Contender, alternate
from benchmarks.load import CACHE, CACHE_PT, NUM, legacy_files
from benchmarks.settings import Settings, warm_page_cache
from ups.config import Features, RunConfig
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
    ensure(fixture.config(settings, CACHE), fixture.sources(settings, num))
    legacy_files(settings, num)


def run(settings: Settings) -> Iterator[Comparison]:
    num = settings.scaled(NUM)
    config = fixture.config(settings, CACHE)
    staged = fixture.sources(settings, num)
    entry = ensure(config, staged)
    in_ram = load(config, {TASK: entry}, {TASK: staged}, device="cpu")
    disk = fixture.config(settings, CACHE, {"features.preload": "disk"})
    on_disk = load(disk, {TASK: entry}, {TASK: staged}, device="cpu")
    pt_files = legacy_files(settings, num)
    old = fixture.config(settings, CACHE_PT, {"features": Features.legacy().model_dump()})
    from_pt = legacy.load(old, {TASK: staged}, "cpu")
    warm_page_cache(pt_files[0].parent)
    earlier = DataLoader(EarlierPreloaded(config, pt_files), BATCH, shuffle=True, collate_fn=concat)

    def epoch(work: Callable[[], Any]) -> Callable[[], float]:
        def measure() -> float:
            started = time.perf_counter()
            work()
            return num / (time.perf_counter() - started)

        return measure

    yield Comparison(
        section="batches",
        phase=f"shuffled batches of {BATCH} trajectories' pairs, N = {num}",
        unit="trajectories/s",
        better="higher",
        results=alternate(
            [
                Contender("ours", "ours", epoch(lambda: draw(in_ram.train))),
                Contender("ours, pairs in fp32", "peer", epoch(lambda: draw(in_ram.train, True))),
                Contender("ours, disk tier", "peer", epoch(lambda: draw(on_disk.train))),
                Contender("earlier, preloaded", "peer", epoch(lambda: list_all(earlier))),
                Contender(".pt from disk", "peer", epoch(lambda: draw(from_pt.train))),
            ],
            settings.repeats,
        ),
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


def list_all(loader: DataLoader[Any]) -> int:
    return sum(len(z0) for z0, _ in loader)


class EarlierPreloaded(Dataset[tuple[Tensor, Tensor]]):
    """All samples in a list, float32; each item is sliced when it is asked for."""

    def __init__(self, config: RunConfig, files: list[Any]) -> None:
        self._stride = config.training.time_stride
        self._samples = [torch.load(path, weights_only=True)["latent"].float() for path in files]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        z = self._samples[index][:: self._stride]
        length = len(z) - HORIZON
        return z[:length], z[HORIZON : HORIZON + length]


def concat(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The pairs of all trajectories in a row."""
    return torch.cat([z0 for z0, _ in items]), torch.cat([z1 for _, z1 in items])
