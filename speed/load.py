"""Load: the latents of a cache entry into memory, cold and warm.

Into RAM: beside other formats and readers. Into GPU memory: beside disk and PCIe bandwidth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from speed import bounds, inputs
from speed.harness import Comparison, Contender, Role, Run, alternate, nearest_bound
from speed.measure import BOUND_CHUNK_BYTES, BOUND_THREADS, CACHE_STATES, clocked, timed
from speed.settings import Settings
from speed.worker import Worker, WorkerError
from ups.config import Features, RunConfig
from ups.latents import legacy, store
from ups.latents.build import CacheEntry, ensure
from ups.latents.chunks import bytes_of
from ups.latents.datasets import PreloadedCacheDataset
from ups.latents.loader import load
from ups.machine import page_cache
from ups.startup.measure.prepare import touch_memory

NUM = 2048
CACHE, CACHE_PT, GPU_CACHE = "cache-load", "cache-load-pt", "cache-gpu"
PEERS = {"LitData": "litdata", "Mosaic Streaming": "mosaic"}  # as `peer_formats` calls them
NOTES = [
    "Load: every contender puts all trajectories (fp16) into one tensor in RAM that it allocates "
    "itself; opening the data set counts, importing does not. Ours compares the checksums on the "
    "way, the others compare none. safetensors maps the file, so its tensor is cloned into memory. "
    "As much memory as the tensor needs is touched before each repeat.",
    "The bound is preadv of the same bytes by as many threads into a buffer that was touched "
    "before; the second one into a fresh buffer, whose pages the kernel has to clear first.",
]
GPU_NOTES = [
    "GPU load: every chunk read, its checksum compared, copied to the device (on a CPU: into RAM).",
    "disk: preadv of the same bytes into a buffer that was touched before. PCIe: one copy of the "
    "same bytes from pinned memory (on a CPU: from memory to memory). The slower is the bound.",
]


def prepare(settings: Settings) -> None:
    """Make the entry and its copies in other formats."""
    num = settings.scaled(NUM)
    config = inputs.config(settings, CACHE)
    entry = ensure(config, inputs.tiled_sources(settings, num))
    legacy_files(settings, num)
    with closing(PeerFormats(settings, *latent_file(config, entry))) as peers:
        for name in PEERS:
            with suppress(WorkerError, OSError):  # its row says so
                peers.ready(name)


def run(settings: Settings) -> Iterator[Comparison]:
    num = settings.scaled(NUM)
    # No stride, so that each delivers the same tensor; training would keep every second frame.
    config = inputs.config(settings, CACHE, {"training.time_stride": 1, "features.preload": "ram"})
    entry = ensure(config, inputs.tiled_sources(settings, num))
    path, shape = latent_file(config, entry)
    pt_files = legacy_files(settings, num)
    chunk_bytes = config.training.encode_batch_size * torch.Size(shape[1:]).numel() * 2
    touched = torch.zeros(shape, dtype=torch.float16)

    def preadv(into: Tensor | None = None) -> float:
        into = torch.empty(shape, dtype=torch.float16) if into is None else into
        return bounds.read_into(path, bytes_of(into), config.training.num_workers, chunk_bytes)

    def read_pt() -> Tensor:
        return torch.stack([torch.load(file, weights_only=True)["latent"] for file in pt_files])

    with closing(PeerFormats(settings, path, shape)) as peers:
        # Name, role, what is measured, and the files that it reads.
        readers: list[tuple[str, Role, Run, Callable[[], Path]]] = [
            ("ours", "ours", partial(load_entry, config, entry), lambda: path),
            (".pt per sample", "peer", partial(timed, read_pt), lambda: pt_files[0].parent),
            ("safetensors", "peer", lambda: timed(lambda: read_safetensors(path)), lambda: path),
            *((n, "peer", partial(peers.read, n), partial(peers.ready, n)) for n in PEERS),
            ("preadv", "bound", lambda: preadv(touched), lambda: path),
            ("preadv, fresh buffer", "bound", lambda: timed(preadv), lambda: path),
        ]
        how = page_cache.drop(path)

        def before(state: str, files: Callable[[], Path]) -> None:
            CACHE_STATES[state](files())
            touch_memory(touched.nbytes)

        for state in ("warm", "cold"):
            contenders = [
                Contender(name, role, run, partial(before, state, files))
                for name, role, run, files in readers
            ]
            size = f"N = {num}, {touched.nbytes / 1e6:.0f} MB"
            yield Comparison(
                phase=f"load into RAM, {size}, {state} page cache",
                results=alternate(contenders, settings.repeats, int(state == "warm")),
                targets={"preadv": 0.85},
                notes=[
                    *NOTES,
                    f"Cold: by {how} before each repeat; what lies below the kernel (a virtual "
                    "disk's host) may still have cached the file.",
                    peers.note(),
                ],
            )


def run_gpu(settings: Settings) -> Iterator[Comparison]:
    device = settings.device
    copied = {"training.time_stride": 1, "features.preload": "gpu"}  # on a CPU: into RAM
    config = inputs.gpu_config(settings, GPU_CACHE, copied)
    entry = ensure(config, inputs.solved_sources(settings), device=device)
    path, shape = latent_file(config, entry)
    host = torch.zeros(shape, dtype=torch.float16, pin_memory=device == "cuda")

    def copy() -> float:
        target = torch.empty_like(host, device=device, pin_memory=False).zero_()
        return timed(lambda: target.copy_(host, non_blocking=True), device)

    ours = partial(load_entry, config, entry, device)
    peer = partial(timed, partial(read_safetensors, path, device), device)
    disk = partial(bounds.read_into, path, bytes_of(host), BOUND_THREADS, BOUND_CHUNK_BYTES)
    for state, change_cache in CACHE_STATES.items():
        before = partial(change_cache, path)
        contenders = [
            Contender("ours", "ours", ours, before),
            Contender("safetensors", "peer", peer, before),
            Contender("disk", "bound", disk, before),
            Contender("PCIe", "bound", copy),
        ]
        results = alternate(contenders, settings.repeats)
        yield Comparison(
            phase=f"load {host.nbytes / 1e6:.0f} MB into {device} memory, {state}",
            results=results,
            targets={nearest_bound(results): 0.85},
            notes=GPU_NOTES,
        )


def latent_file(config: RunConfig, entry: CacheEntry) -> tuple[Path, list[int]]:
    """The file with the training latents of an entry, and its shape."""
    cache_dir = config.training.latent_cache_dir
    manifest = store.open_current(cache_dir, entry.config_hash)
    file = manifest.of_split("train")[0]
    return store.generation_dir(cache_dir, manifest) / file.name, list(file.shape)


def legacy_files(settings: Settings, num: int) -> list[Path]:
    """The same latents as legacy mode stores them, one `.pt` per trajectory."""
    config = inputs.config(settings, CACHE_PT, {"features": Features.legacy().model_dump()})
    folder = legacy.split_dir(config, "train")
    is_whole = len(list(folder.glob("*.pt"))) == num
    if not (is_whole and legacy.encoder_path(config).exists()):
        legacy.precompute(config, inputs.tiled_sources(settings, num))
    return sorted(folder.glob("*.pt"))


def load_entry(config: RunConfig, entry: CacheEntry, device: str = "cpu") -> float:
    """Seconds until the latents of an entry are in the device's memory."""
    into_memory = partial(load, config, {inputs.PROBLEM: entry}, {}, device=device)
    seconds, latents = clocked(into_memory, device)
    assert isinstance(latents.train, PreloadedCacheDataset)
    latents.close()
    return seconds


def read_safetensors(path: Path, device: str = "cpu") -> Tensor:
    from safetensors.torch import load_file

    latents = load_file(path, device=device)["latents"]
    return latents.clone() if device == "cpu" else latents  # a map of the file so far


class PeerFormats:
    """The readers of the peers' environment, each in a process of its own, and their files."""

    def __init__(self, settings: Settings, path: Path, shape: list[int]) -> None:
        self._settings, self._path, self._shape = settings, path, shape
        self._workers: dict[str, Worker] = {}
        self._imports: dict[str, float] = {}

    def ready(self, name: str) -> Path:
        """Have a peer's process, and its copy of the latents; returns the folder of the latter.

        Raises:
            WorkerError: the environment is not installed, or the peer fails.
        """
        python, kind = self._settings.peers, PEERS[name]
        if not python.exists():
            raise WorkerError(f"no {python.parents[1].name}: run `make speed`")
        if name not in self._workers:
            self._workers[name] = Worker("speed.peer_formats", python=python)
        if name not in self._imports:
            self._imports[name] = self._workers[name].call("import_s", peer=kind)
        folder = self._settings.folder / f"{kind}-{'x'.join(map(str, self._shape))}"
        if not (folder / "index.json").exists():
            files = {"path": str(self._path), "folder": str(folder), "shape": self._shape}
            self._workers[name].call(f"write_{kind}", **files)
        return folder

    def read(self, name: str) -> float:
        """Seconds until a peer has opened its data set and read all of it."""
        files = {"folder": str(self.ready(name)), "shape": self._shape}
        seconds: float = self._workers[name].call(f"read_{PEERS[name]}", **files)
        return seconds

    def note(self) -> str:
        imports = [f"{name} {seconds:.1f} s" for name, seconds in self._imports.items()]
        return f"Import time of the peers, not counted: {', '.join(imports) or 'none came up'}."

    def close(self) -> None:
        for worker in self._workers.values():
            worker.close()
