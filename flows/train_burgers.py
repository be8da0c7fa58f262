"""`train-burgers`: from a trigger to a trained and scored operator, phase by phase."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow, runtime
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.futures import PrefectFuture, as_completed
from prefect.task_runners import ThreadPoolTaskRunner

from tasks.cache import cache_task
from tasks.download import download
from tasks.evaluate import evaluate
from tasks.load import load_latents, warm_up_device
from tasks.report import Story, report_overhead
from tasks.train import train_operator
from tasks.validate import validate_config
from ups.config import SPLITS, Features, RunConfig, read_config
from ups.config_data import Task
from ups.data.sources import open_store
from ups.errors import UpsError
from ups.latents.key import ENCODED_SPLITS, compute_cache_hash
from ups.latents.store import valid_generation
from ups.runs import checkpoint_to_resume, has_to_build, open_run_dir, recorded
from ups.telemetry.provision import claim
from ups.telemetry.story import Cached, Part
from ups.tracking import Trackers, tracked

if TYPE_CHECKING:
    from ups.data.objectstore import ObjectStore

log = logging.getLogger("ups.flow")
logging.getLogger("ups").setLevel(logging.INFO)  # its lines go to the run's log in the UI

_Downloads = dict[Part, PrefectFuture[Any]]

THREADS = 8  # a submitted task that waits occupies one, so there are some to spare


@flow(
    name="train-burgers",
    flow_run_name="{config}",
    task_runner=ThreadPoolTaskRunner(max_workers=THREADS),
)
def train_burgers(
    config: str = "smoke",
    latent_dim: int | None = None,
    latent_tokens: int | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    overrides: dict[str, Any] | None = None,
    features: Features | None = None,
    overwrite_cache: bool = False,
    resume_from: str | None = None,
) -> None:
    """Download PDEBench data, encode it once, train a latent operator, and show where time went.

    Args:
        config: Name of a config in deployments/configs, or the path of one.
        latent_dim: Channels of a token, 1 or more. None: as in the config.
        latent_tokens: Tokens of a frame, a divisor of the grid. None: as in the config.
        epochs: Passes over the training split, 1 or more. None: as in the config.
        seed: Seed of the weights and of the shuffling. None: as in the config.
        overrides: Any other value by its dotted key, such as {"training.batch_size": 24}.
        features: The optimisations, to switch them off one by one. None: as in the config.
        overwrite_cache: Build the latent cache again although it is there.
        resume_from: A checkpoint of another run to go on from. None: start new.
    """
    changes = {
        "latent.dim": latent_dim,
        "latent.tokens": latent_tokens,
        "stages.operator.epochs": epochs,
        "training.seed": seed,
        "features": features.model_dump() if features else None,
    }
    chosen = {key: value for key, value in changes.items() if value is not None}
    parsed = read_config(config, {**(overrides or {}), **chosen})
    resume = Path(resume_from) if resume_from else None
    if parsed.faults:  # then not even the run's folder is known
        validate_config(parsed, resume)
    resolved = parsed.config
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    run_id = context.flow_run.id
    run_dir = open_run_dir(resolved, run_id)
    story = Story(resolved, run_dir, flow_run_id=run_id)
    story.provision = claim(story.run_dir)
    story.overwrite_cache = overwrite_cache or not resolved.features.reuse_cache
    stop = threading.Event()
    deployment = context.flow_run.deployment_id
    record = recorded(
        story.run_dir, deployment=str(deployment) if deployment else None, flow_run_id=str(run_id)
    )
    with record, tracked(resolved, story.run_dir) as trackers:
        try:
            with story.gpu:
                store, refused = _open_store(resolved)  # no request, but a client is made
                validate_config(parsed, checkpoint_to_resume(story.run_dir, resume), refused)
                _run_phases(story, store, stop, trackers, resume)
        except BaseException as error:
            stop.set()
            story.failure = error
            raise
        finally:
            if story.latents is not None:
                story.latents.close()
            _report(story)


def _open_store(config: RunConfig) -> tuple[ObjectStore | None, UpsError | None]:
    """The store, or what is wrong with its address: one fault among those of the whole run."""
    try:
        return open_store(config), None
    except UpsError as error:
        return None, error


def _run_phases(
    story: Story,
    store: ObjectStore | None,
    stop: threading.Event,
    trackers: Trackers,
    resume: Path | None,
) -> None:
    config = story.config
    warm_up = warm_up_device.submit(config) if config.features.warm_up else None
    tasks = config.data.tasks
    downloads: _Downloads = {}
    for split, task in itertools.product(SPLITS, tasks):
        part, label = (task.name, split), config.data.label(task, split)
        downloads[part] = download.submit(config.of_task(task), split, label, store, stop)
        if not config.features.parallel_downloads:
            story.staged[part] = downloads[part].result()
    for task in tasks:
        _wait_for(story, downloads, [(task.name, split) for split in ENCODED_SPLITS], warm_up)
        _find_entry(story, task, stop)

    is_cached = config.features.preload != "off"
    entries = {name: cached.entry for name, cached in story.entries.items()} if is_cached else None
    encoded = {task.name: story.staged_of(task, ENCODED_SPLITS) for task in tasks}
    latents = story.latents = load_latents(config, encoded, entries, stop)
    step = warm_up.result() if warm_up else None

    def note_first_step(at: float) -> None:
        story.first_step_at = at
        trackers.start()

    story.result = train_operator(config, latents, story.run_dir, step, resume, note_first_step)
    _wait_for(story, downloads, list(downloads), None)
    test = {task.name: story.staged[task.name, "test"] for task in tasks}
    story.scores = evaluate(config, story.result.checkpoint, test, latents.encoders, story.run_dir)


def _find_entry(story: Story, task: Task, stop: threading.Event) -> None:
    """Build or find the cache entry of a task, in the main thread, where a signal reaches it."""
    config, encoded = story.config.of_task(task), story.staged_of(task, ENCODED_SPLITS)
    key = compute_cache_hash(config, encoded)
    story.config_hashes.append(key)
    if config.features.preload == "off":
        return
    from ups.latents.build import CacheEntry

    found = valid_generation(config.training.latent_cache_dir, key)
    overwrite = story.overwrite_cache and has_to_build(story.run_dir, key, found)
    there = not overwrite and found is not None
    build = cache_task(config, key, overwrite=overwrite, reused=there)
    keep = [cached.entry.generation for cached in story.entries.values()]
    state = build(config, encoded, key, overwrite, keep, stop, return_state=True)
    entry = CacheEntry.model_validate(state.result())
    story.entries[task.name] = Cached(entry, state.name == "Cached" or entry.reused)


def _wait_for(
    story: Story,
    downloads: _Downloads,
    parts: Sequence[Part],
    warm_up: PrefectFuture[Any] | None,
) -> None:
    """Wait until these parts are staged; whatever fails meanwhile fails the run at once."""
    if all(part in story.staged for part in parts):
        return
    names = {future.task_run_id: part for part, future in downloads.items()}
    pending = [future for part, future in downloads.items() if part not in story.staged]
    if warm_up is not None:
        pending.append(warm_up)
    for future in as_completed(pending):
        result = future.result()
        if part := names.get(future.task_run_id):
            story.staged[part] = result
        if all(part in story.staged for part in parts):
            return


def _report(story: Story) -> None:
    """Publish the breakdown. What a run came to does not change because that fails."""
    try:
        report_overhead(story)
        _name_after_cache_entry(story)
    except Exception as error:  # noqa: BLE001 (the API can refuse an artifact in many ways)
        log.warning("the overhead breakdown could not be published: %s", error)


def _name_after_cache_entry(story: Story) -> None:
    """Put the cache entries into the run's name, where the list of runs shows them."""
    if story.config_hash is None:
        return
    name = f"{story.config.name} [{story.config_hash}]{' reused' if story.cache_reused else ''}"
    with get_client(sync_client=True) as client:
        client.update_flow_run(runtime.flow_run.id, name=name)


if __name__ == "__main__":
    train_burgers()
