"""The phases of a run as tasks: a name each, and one call into the library.

What imports torch is imported in the bodies, so that downloads begin before torch is there. The
phase that builds the latent cache has a Prefect cache key, and `tasks/cache.py` to itself.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect.exceptions import CancelledRun
from prefect.states import Cancelled, Completed, State

from tasks.progress import ProgressArtifact
from tasks.timeline import phase_task
from ups.config import ProblemConfig, RunConfig, Split
from ups.data.s3errors import StoreRefuses
from ups.data.sources import Staged, stage
from ups.errors import ConfigError, Interrupted, UpsError
from ups.latents.ahead import comes_meanwhile
from ups.latents.cached import Cached
from ups.latents.scouted import Scouted
from ups.machine.ranks import local_ranks
from ups.machine.torch_import import collector_at_rest
from ups.progress import Progress, logged
from ups.validate.run import require_valid

if TYPE_CHECKING:
    from ups.background import Background
    from ups.data.objectstore import ObjectStore
    from ups.latents.build import CacheEntry
    from ups.latents.encode import PatchEncoder
    from ups.latents.loader import Latents
    from ups.latents.pulled_stream import PulledStream
    from ups.latents.sharing import Hits, Sharing
    from ups.latents.stream import Stream
    from ups.pipeline.launch import Ranked
    from ups.training.evaluate import Scores
    from ups.training.loop import TrainResult
    from ups.training.step import TrainStep

    Looking = Background[Scouted | Cached | Hits | None]


@phase_task("validate", task_run_name="0 validate-config")
def validate_config(
    config: RunConfig | ConfigError,
    resume: Path | None = None,
    run_dir: Path | None = None,
    refused: UpsError | None = None,
) -> None:
    """Fail with all faults of a run at once.

    Args:
        config: or what is wrong with it: then nothing else can be checked.
        resume: the checkpoint to go on from; a retry has one of its own in `run_dir`.
        refused: why the object store cannot be addressed, if it cannot.
    """
    if isinstance(config, ConfigError):
        raise config
    require_valid(config, resume, run_dir, refused=refused)


@phase_task("warm-up", task_run_name="1 warm-up-device")
def warm_up_device(config: RunConfig) -> TrainStep | None:
    """Import torch, build the model and take a step on made-up data, beside the downloads.

    Where several processes train, that is for them to do: None; what they come from is warmed up.
    """
    if local_ranks(config) > 1:
        from ups.pipeline.launch import prepare_ranks

        prepare_ranks(config)
        return None
    with collector_at_rest():
        from ups.training.step import TrainStep

    step = TrainStep(config)
    step.warm_up()
    return step


@phase_task("download", task_run_name="1 download [{label}]")
def download(
    config: ProblemConfig,
    split: Split,
    label: str,
    store: ObjectStore | None,
    looking: Looking,
    stop: threading.Event,
) -> list[Staged] | State[Any]:
    """Stage the sources of a split, with a progress artifact while bytes move.

    Args:
        label: the split, after the name of its problem where there are several.
        looking: says whether training reads them as they come: then this follows how far they are;
            or whether their latents are in the cache: then nothing is fetched; or are pulled: then
            it is test alone, once they are here.
    Returns:
        They, in the latter case with a state that says so; or Cancelled where the store refuses
        for a reason that another download fails with, or where something else ended the run.
    """
    key = re.sub("[^a-z0-9]+", "-", f"download-{label}".lower())  # all that an artifact's key takes
    with ProgressArtifact(key, f"download of the {label} split") as artifact:
        found, name = looking.result_unless(stop, "the object store"), config.problem.name
        if isinstance(found, Cached) and split in found.sources.get(name, ()):
            artifact.discard()
            why = f"nothing to fetch: the latents are in the cache, {found.keys[name]}"
            return Completed(message=why, data=found.sources[name][split])
        if comes_meanwhile(found) and not isinstance(found, Scouted):
            if split in found.sources[name]:
                artifact.discard()
                where = found.remote.folder.uri(found.keys[name])
                why = f"nothing to fetch: the latents are pulled, {where}"
                return Completed(message=why, data=found.sources[name][split])
            found.wait_until_over(stop)
        if isinstance(found, Scouted):
            try:
                return found.finished(name, split, artifact.update)
            except Interrupted as stopped:
                if not found.is_given_up:
                    return Cancelled(message=str(stopped))
        log_progress = logged(f"[{label}] fetched", "MB", 1e6)

        def progress(done: int, total: int) -> None:
            artifact.update(done, total)
            log_progress(done, total)

        try:
            staged = stage(config, split, store, stop=stop, progress=progress)
        except StoreRefuses as refusal:
            if store is None or store.is_first(refusal):
                raise
            return Cancelled(message="the store refused, as another download says")
        if not any(source.fetched_bytes for source in staged):
            artifact.discard()
        return staged


@phase_task("load", task_run_name="3 load-latents")
def stream_latents(
    config: RunConfig, found: Scouted | Hits, sharing: Sharing | None, stop: threading.Event
) -> Stream | PulledStream | None:
    """Have latents be read as they are encoded, or pulled; None where they cannot be."""
    if isinstance(found, Scouted):
        from ups.latents.stream import stream_latents as stream

        return stream(config, found, stop, logged)
    assert sharing is not None, "who finds something there has looked"
    from ups.latents.pulled_stream import stream_pulled

    return stream_pulled(config, sharing, found, stop, logged)


@phase_task("load", task_run_name="3 load-latents")
def load_latents(
    config: RunConfig,
    sources: Mapping[str, Mapping[str, Sequence[Staged]]],
    entries: Mapping[str, CacheEntry] | None,
    stop: threading.Event,
) -> Latents:
    """Put the latents where training reads them; without entries, encode on demand."""
    from ups.pipeline.phases import load_latents as load

    return load(config, sources, entries, stop=stop)


@phase_task("train", task_run_name="4 train-operator")
def train_operator(
    config: RunConfig,
    latents: Latents,
    run_dir: Path,
    step: TrainStep | None,
    resume: Path | None,
    on_first_step: Callable[[float], None],
    on_first_epoch: Callable[[TrainResult], None],
    progress: Progress,
    ranks: Ranked | None = None,
) -> TrainResult:
    """Train the operator. The flow calls it directly: only then does cancelling reach it.

    Args:
        ranks: where several processes train, what they are started with.
    """
    reports = {
        "on_first_step": on_first_step,
        "on_first_epoch": on_first_epoch,
        "progress": progress,
    }
    if ranks is not None:
        from ups.pipeline.launch import train_in_ranks

        return train_in_ranks(config, ranks, latents, run_dir, resume=resume, **reports)
    from ups.training.loop import train

    return train(config, latents, run_dir, step=step, resume=resume, **reports)


@phase_task("push", task_run_name="5 push-latents")
def push_latents(
    sharing: Sharing,
    store: ObjectStore | None,
    built: Callable[[], Mapping[str, str]],
    may_begin: threading.Event,
    stop: threading.Event,
) -> State[Any]:
    """Push entries that the shared cache lacks, while training goes on; the state says what came.

    Args: see `push_entries`.
    """
    from ups.pipeline.phases import push_entries

    try:
        line = push_entries(sharing, store, built, may_begin, stop)
    except CancelledRun:  # the training says why there are none
        line = ""
    return Completed(message=line or None)


@phase_task("evaluate", task_run_name="5 evaluate")
def evaluate(
    config: RunConfig,
    checkpoint: Path,
    test: Mapping[str, Sequence[Staged]],
    encoders: Mapping[str, PatchEncoder],
    run_dir: Path,
) -> Scores:
    """Score the checkpoint that val chose on the test split.

    The flow calls it directly, as it does the training: both may start processes.
    """
    from ups.pipeline.scoring import evaluate as score

    return score(config, checkpoint, test, encoders, run_dir)
