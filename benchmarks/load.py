"""Load: the latents of a cache entry into RAM, cold and warm, beside other formats and readers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import bounds, fixture
from benchmarks.harness import Comparison, Contender, alternate, describe
from benchmarks.settings import Settings, warm_page_cache
from benchmarks.worker import Worker, WorkerError
from ups.config import Features, RunConfig
from ups.latents import legacy, store
from ups.latents.build import CacheEntry, ensure
from ups.latents.chunks import bytes_of
from ups.latents.datasets import PreloadedCacheDataset
from ups.latents.loader import load
from ups.startup import page_cache
from ups.startup.at_hand import claim

NUM = 2048
CACHE, CACHE_PT = "cache-load", "cache-load-pt"
PEERS = ("LitData", "Mosaic Streaming")
WRITERS = {"LitData": "litdata", "Mosaic Streaming": "mosaic"}
NOTES = [
    "Load: every contender puts all trajectories (fp16) into one tensor in RAM that it allocates "
    "itself; opening the data set counts, importing does not. Ours compares the checksums on the "
    "way, the others compare none. safetensors maps the file, so its tensor is cloned into memory. "
    "As much memory as the tensor needs is touched before each repeat.",
    "The bound is preadv of the same bytes by as many threads into a buffer that was touched "
    "before; the second one into a fresh buffer, whose pages the kernel has to clear first.",
]


def prepare(settings: Settings) -> None:
    """Make the entry and its copies in other formats."""
    num = settings.scaled(NUM)
    config = fixture.config(settings, CACHE)
    path, shape = latent_file(config, ensure(config, fixture.sources(settings, num)))
    legacy_files(settings, num)
    PeerFormats(settings, path, shape).close()


def run(settings: Settings) -> Iterator[Comparison]:
    num = settings.scaled(NUM)
    # No stride, so that each delivers the same tensor; training would keep every second frame.
    config = fixture.config(settings, CACHE, {"training.time_stride": 1, "features.preload": "ram"})
    staged = fixture.sources(settings, num)
    entry = ensure(config, staged)
    path, shape = latent_file(config, entry)
    pt_files = legacy_files(settings, num)
    with PeerFormats(settings, path, shape) as peers:
        megabytes = torch.Size(shape).numel() * 2 / 1e6

        def contenders(prepare: Callable[..., None]) -> list[Contender]:
            found = [
                Contender("ours", "ours", lambda: _ours(config, entry), partial(prepare, path)),
                Contender(
                    ".pt per sample",
                    "peer",
                    lambda: _timed(lambda: _read_pt(pt_files)),
                    partial(prepare, pt_files[0].parent),
                ),
                Contender(
                    "safetensors",
                    "peer",
                    lambda: _timed(lambda: _read_safetensors(path)),
                    partial(prepare, path),
                ),
            ]
            for name in PEERS:
                read, folder = partial(peers.read, name), peers.folder(name)
                found.append(Contender(name, "peer", read, partial(prepare, folder)))
            touched = torch.zeros(shape, dtype=torch.float16)
            for name, into in (("preadv", touched), ("preadv, fresh buffer", None)):
                bound = partial(_bound, path, config, shape, into)
                found.append(Contender(name, "bound", bound, partial(prepare, path)))
            return found

        how = page_cache.drop(path)
        for state, cache in (("warm", warm_page_cache), ("cold", page_cache.drop)):

            def prepare(*paths: Path, cache: Callable[..., object] = cache) -> None:
                cache(*paths)
                claim(round(megabytes * 1e6))

            yield Comparison(
                section="load",
                phase=f"load into RAM, N = {num}, {megabytes:.0f} MB, {state} page cache",
                unit="s",
                better="lower",
                results=alternate(contenders(prepare), settings.repeats, int(state == "warm")),
                targets={"preadv": 0.85},
                notes=[
                    *NOTES,
                    f"Cold: by {how} before each repeat; what lies below the kernel (a virtual "
                    "disk's host) may still have cached the file.",
                    peers.note(),
                ],
            )


def latent_file(config: RunConfig, entry: CacheEntry) -> tuple[Path, list[int]]:
    """The file with the training latents of an entry, and its shape."""
    cache_dir = config.training.latent_cache_dir
    manifest = store.open_current(cache_dir, entry.config_hash)
    file = manifest.of_split("train")[0]
    return store.generation_dir(cache_dir, manifest) / file.name, list(file.shape)


def legacy_files(settings: Settings, num: int) -> list[Path]:
    """The same latents as legacy mode stores them, one `.pt` per trajectory."""
    features = {"features": Features.legacy().model_dump()}
    config = fixture.config(settings, CACHE_PT, features)
    folder = legacy.split_dir(config, "train")
    there = legacy.encoder_path(config).exists()
    if not there or len(list(folder.glob("*.pt"))) != num:
        legacy.precompute(config, fixture.sources(settings, num))
    return sorted(folder.glob("*.pt"))


class PeerFormats:
    """The readers of the peers' environment, each in a process of its own, and their files."""

    def __init__(self, settings: Settings, path: Path, shape: list[int]) -> None:
        self._settings, self._path, self._shape = settings, path, shape
        self._workers: dict[str, Worker] = {}
        self._imports: dict[str, float] = {}
        self._faults: dict[str, str] = {}
        for name in PEERS:
            try:
                self._prepare(name)
            except (WorkerError, OSError) as error:
                self._faults[name] = describe(error)

    def _prepare(self, name: str) -> None:
        if not self._settings.peers.exists():
            raise WorkerError(f"no {self._settings.peers.parents[1].name}: run `make bench`")
        worker = Worker("benchmarks.peer_formats", python=self._settings.peers)
        self._workers[name] = worker
        self._imports[name] = worker.call(f"import_{WRITERS[name]}")
        arguments = {"shape": self._shape, "folder": str(self.folder(name))}
        if not worker.call("exists", folder=arguments["folder"]):
            worker.call(f"write_{WRITERS[name]}", path=str(self._path), **arguments)

    def folder(self, name: str) -> Path:
        shape = "x".join(str(n) for n in self._shape)
        return self._settings.folder / f"{WRITERS[name]}-{shape}"

    def read(self, name: str) -> float:
        if name in self._faults:
            raise WorkerError(self._faults[name])
        arguments = {"folder": str(self.folder(name)), "shape": self._shape}
        found: dict[str, float] = self._workers[name].call(f"read_{WRITERS[name]}", **arguments)
        return found["seconds"]

    def note(self) -> str:
        imports = [f"{name} {seconds:.1f} s" for name, seconds in self._imports.items()]
        return f"Import time of the peers, not counted: {', '.join(imports) or 'none came up'}."

    def __enter__(self) -> PeerFormats:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for worker in self._workers.values():
            worker.close()


def _ours(config: RunConfig, entry: CacheEntry) -> float:
    started = time.perf_counter()
    latents = load(config, {fixture.TASK: entry}, {}, device="cpu")
    seconds = time.perf_counter() - started
    assert isinstance(latents.train, PreloadedCacheDataset)
    latents.close()
    return seconds


def _read_pt(files: list[Path]) -> Tensor:
    return torch.stack([torch.load(path, weights_only=True)["latent"] for path in files])


def _read_safetensors(path: Path) -> Tensor:
    from safetensors.torch import load_file

    return load_file(path)["latents"].clone()


def _bound(path: Path, config: RunConfig, shape: list[int], into: Tensor | None) -> float:
    training = config.training
    chunk_bytes = training.encode_batch_size * torch.Size(shape[1:]).numel() * 2
    if into is not None:
        return bounds.read_into(path, bytes_of(into), training.num_workers, chunk_bytes)
    return _timed(
        lambda: bounds.read_into(
            path,
            bytes_of(torch.empty(shape, dtype=torch.float16)),
            training.num_workers,
            chunk_bytes,
        )
    )


def _timed(work: Callable[[], object]) -> float:
    """Seconds of the work; letting go of its result is not counted."""
    started = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - started
    del result
    return seconds
