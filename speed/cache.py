"""Cache build. On a CPU: beside legacy mode with the same encoder, and memory for few and many.

On a GPU: the set of PDEBench's size, beside the slower of disk read and disk write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from speed import bounds, inputs
from speed.harness import Comparison, Contender, Role, Sample, alternate, nearest_bound, ours_first
from speed.measure import (
    BOUND_CHUNK_BYTES,
    BOUND_THREADS,
    CACHE_STATES,
    fresh_process,
    gpu_watched,
    mean_utilisation,
    peak_of,
    timed,
    warm_page_cache,
)
from speed.settings import Settings
from ups.config import Features
from ups.data.pdebench import TrajectoryFile
from ups.latents.build import Build, ensure
from ups.latents.key import key_fields
from ups.latents.legacy import precompute
from ups.latents.store import estimate_cache_size_mb

NUM, NUM_LARGE = 512, 4096
WHOLE_CHUNKS = 16  # trajectories at least, or there would be no chunk in full
MEMORY_REPEATS = 2
CACHE, GPU_CACHE = "cache-build", "cache-gpu-encode"
NOTES = [
    "Cache build: train and val, fit of the encoder included, the source in the page cache, the "
    "cache folder emptied before each repeat. Ours ends with fsync, legacy mode does not.",
    "read + write: the source read and the latents' bytes written by as many threads, no encoding, "
    "no fsync. write + fsync: the latents' bytes alone, forced to the disk.",
]
GPU_NOTES = [
    "GPU encode: all trajectories, fp16, K = 16, D = 32, fit and fsync included, the cache folder "
    "emptied before; the set was solved on this machine. The plan hoped for 2 to 5 minutes.",
    f"disk read: the source by {BOUND_THREADS} threads, each into a buffer of its own; disk write: "
    f"the latents' bytes by {BOUND_THREADS} threads and fsync. The slower of the two is the bound.",
]


def run(settings: Settings) -> Iterator[Comparison]:
    clean = partial(inputs.empty, settings.folder / CACHE)
    yield _build(settings, clean)
    yield _first_chunks(settings, clean)
    yield _peak_memory(settings, clean)
    clean()


def _build(settings: Settings, clean: Callable[[], object]) -> Comparison:
    num = settings.scaled(NUM)
    config, staged = inputs.config(settings, CACHE), inputs.tiled_sources(settings, num)
    legacy = inputs.config(settings, CACHE, {"features": Features.legacy().model_dump()})
    training, total, source_path = config.training, num + inputs.NUM_VAL, inputs.tiled_set(settings)
    row_bytes = round(estimate_cache_size_mb(config, 1, settings.num_frames) * 1e6)
    threads, rows = training.num_workers, training.encode_batch_size
    written = training.latent_cache_dir / "bound"
    build = partial(timed, partial(ensure, config, staged))
    build_legacy = partial(timed, partial(precompute, legacy, staged))
    write = partial(bounds.write_synced, written, total * row_bytes, threads, rows * row_bytes)

    def read_write() -> float:
        with TrajectoryFile(source_path, (0, total)) as source:
            return bounds.read_and_write(source, written, threads, rows, row_bytes)

    def contender(name: str, role: Role, seconds: Callable[[], float]) -> Contender:
        return Contender(name, role, lambda: total / seconds(), clean)

    warm_page_cache(source_path)
    return Comparison(
        phase=f"cache build, N = {num}, CPU",
        unit="trajectories/s",
        better="higher",
        results=alternate(
            [
                contender("ours", "ours", build),
                contender("legacy mode", "peer", build_legacy),
                contender("read + write", "bound", read_write),
                contender("write + fsync", "bound", write),
            ],
            settings.repeats,
        ),
        targets={"write + fsync": 0.5},
        notes=[*NOTES, f"Threads: {threads}."],
    )


def _first_chunks(settings: Settings, clean: Callable[[], object]) -> Comparison:
    """What the first step waits for where training begins before the build has ended."""
    config = inputs.config(settings, CACHE)
    staged = inputs.tiled_sources(settings, settings.scaled(NUM, WHOLE_CHUNKS))
    training = config.training
    rows = training.encode_batch_size
    num_chunks = -(-training.batch_size // rows)
    row_bytes = round(estimate_cache_size_mb(config, 1, settings.num_frames) * 1e6)
    how = num_chunks * rows * row_bytes, training.num_workers, rows * row_bytes

    def build(*, is_forced: bool) -> float:
        build = Build(config, staged, key_fields(config, staged), "cpu")
        build.begin()

        def encode() -> None:
            for job in build.jobs()[:num_chunks]:
                build.encode(job)
            if is_forced:
                build.sync()

        try:
            return timed(encode)
        finally:
            build.close()

    def contender(name: str, role: Role, seconds: Callable[[], float]) -> Contender:
        return Contender(name, role, lambda: num_chunks * rows / seconds(), clean)

    write = partial(bounds.write_synced, training.latent_cache_dir / "bound", *how)
    return Comparison(
        phase=f"cache build, the {num_chunks * rows} trajectories of the first batch, CPU",
        unit="trajectories/s",
        better="higher",
        results=alternate(
            [
                contender("ours", "ours", partial(build, is_forced=False)),
                contender("ours, with fsync", "peer", partial(build, is_forced=True)),
                contender("write + fsync", "bound", write),
            ],
            settings.repeats,
        ),
        targets={"write + fsync": 0.5},
        notes=[
            "The first batch: its chunks encoded by one thread and written, the encoder fitted "
            "before; the first step waits for no fsync."
        ],
    )


def _peak_memory(settings: Settings, clean: Callable[[], object]) -> Comparison:
    """The large build's peak is the small one's: memory is O(batch)."""
    large, small = (settings.scaled(n) for n in (NUM_LARGE, NUM))
    builds = {f"N = {n}": partial(_peak_of_build, settings, n) for n in (large, small)}
    repeats = min(MEMORY_REPEATS, settings.repeats)
    return Comparison(
        phase=f"peak memory of the build, N = {large} beside N = {small}",
        unit="MB",
        results=alternate(ours_first(builds, clean), repeats, warm_ups=0),
        targets={f"N = {small}": 1 / 1.1},
        notes=[
            "Peak memory: VmHWM during the build less VmRSS before it, each in a fresh process "
            f"({MEMORY_REPEATS} repeats); the target is at most 10 % more for the larger build."
        ],
    )


def _peak_of_build(settings: Settings, num: int) -> float:
    with fresh_process() as process:
        return process.submit(build_once, settings, num).result()


def build_once(settings: Settings, num: int) -> float:
    """The peak of one build in MB; runs in a process of its own."""
    config, staged = inputs.config(settings, CACHE), inputs.tiled_sources(settings, num)
    return peak_of(lambda: ensure(config, staged))[2] / 1e6


def run_gpu(settings: Settings) -> Iterator[Comparison]:
    path, cache_dir = inputs.solved_set(settings), settings.folder / GPU_CACHE
    config = inputs.gpu_config(settings, GPU_CACHE)
    staged = inputs.solved_sources(settings, whole=True)
    num = settings.scaled(inputs.NUM_SOLVED)
    num_bytes = int(estimate_cache_size_mb(config, num, settings.num_frames) * 1e6)
    how = BOUND_THREADS, BOUND_CHUNK_BYTES
    read = partial(bounds.read_through, path, *how)
    write = partial(bounds.write_synced, cache_dir / "bound", num_bytes, *how)

    def encode() -> Sample:
        with gpu_watched(settings.device) as watch:
            seconds = timed(lambda: ensure(config, staged, device=settings.device))
        use = mean_utilisation(watch)
        return Sample(seconds, {} if use is None else {"GPU %": use})

    for state, prepare in CACHE_STATES.items():

        def before(prepare: Callable[..., object] = prepare) -> None:
            inputs.empty(cache_dir)
            prepare(path)

        contenders = [
            Contender("ours", "ours", encode, before),
            Contender("disk read", "bound", read, before),
            Contender("disk write", "bound", write, before),
        ]
        results = alternate(contenders, settings.repeats)
        yield Comparison(
            phase=f"encode {num:,} × {settings.num_frames} × {settings.grid_points}, "
            f"{path.stat().st_size / 1e9:.2f} GB, {state} page cache, {settings.device}",
            results=results,
            targets={nearest_bound(results): 0.8},
            notes=GPU_NOTES,
        )
    inputs.empty(cache_dir)
