"""`train-burgers`: from a trigger to a trained and scored operator, phase by phase."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.exceptions import CancelledRun
from prefect.futures import PrefectFuture, as_completed
from prefect.runtime import flow_run
from prefect.states import State
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from tasks.cache import cache_task, follow_latent_cache
from tasks.cancel import told_from_a_crash
from tasks.failures import failed_with, say_reasons_first
from tasks.forms import or_none
from tasks.phases import (
    download,
    evaluate,
    load_latents,
    push_latents,
    stream_latents,
    train_operator,
    validate_config,
    warm_up_device,
)
from tasks.report import Pages, report_overhead, show_refusal
from ups.background import Background
from ups.config import PARAMETERS, SPLITS, Features, Problem, RunConfig, load_changed, run_title
from ups.data.sources import open_store
from ups.errors import ConfigError, UpsError
from ups.latents.ahead import comes_meanwhile, look
from ups.latents.key import ENCODED_SPLITS, compute_cache_hash
from ups.latents.scout import may_stream
from ups.latents.scouted import NothingToFetch, Scouted
from ups.latents.store import valid_generation
from ups.machine.cuda_context import make_context_beside
from ups.machine.ranks import local_ranks
from ups.machine.torch_import import load_libraries_beside
from ups.pipeline.provision import claim
from ups.pipeline.state import ProblemSplit, RunState, running, sharing_of
from ups.progress import logged
from ups.runs.folder import has_to_build, open_run_dir
from ups.tracking import Trackers

if TYPE_CHECKING:
    from ups.data.objectstore import ObjectStore
    from ups.latents.sharing import Hits
    from ups.pipeline.launch import Ranked

logging.getLogger("ups").setLevel(logging.INFO)  # its lines go to the run's log in the UI

_Downloads = dict[ProblemSplit, PrefectFuture[Any]]
_Entries = dict[str, PrefectFuture[Any]]

# The form and the server refuse others, with these words.
Whole = Annotated[int | None, Field(json_schema_extra=or_none("integer"))]
Count = Annotated[int | None, Field(json_schema_extra=or_none("integer", minimum=1))]
Section = Annotated[Features | None, Field(json_schema_extra=or_none("object"))]
Overrides = Annotated[dict[str, Any] | None, Field(json_schema_extra=or_none("object"))]
Text = Annotated[str | None, Field(json_schema_extra=or_none("string"))]
THREADS = 8  # a submitted task that waits occupies one, so there are some to spare
DEFAULT = "smoke"


def _name_at_start() -> str:
    """By the parameters alone: the config is not read yet."""
    given = flow_run.parameters
    typed = {key: given.get(name) for name, key in PARAMETERS.items()}
    chosen = {key: value for key, value in typed.items() if value is not None}
    overrides = given.get("overrides") or {}
    name = overrides.get("name", Path(given.get("config", DEFAULT)).stem)
    return run_title(name, {**overrides, **chosen})


@flow(
    name="train-burgers",
    flow_run_name=_name_at_start,
    task_runner=ThreadPoolTaskRunner(max_workers=THREADS),
)
def train_burgers(
    config: str = DEFAULT,
    latent_dim: Count = None,
    latent_tokens: Count = None,
    epochs: Count = None,
    seed: Whole = None,
    overrides: Overrides = None,
    features: Section = None,
    overwrite_cache: bool = False,
    resume_from: Text = None,
) -> State[Any] | None:
    """Download PDEBench data, encode it once, train a latent operator, and show where time went.

    Args:
        config: Name of a config in deployments/configs, or the path of one.
        latent_dim: Channels of a token, 1 or more. None: as in the config.
        latent_tokens: Tokens of a frame, a divisor of the grid. None: as in the config.
        epochs: Passes over the training split, 1 or more. None: as in the config.
        seed: Seed of the weights and of the shuffling. None: as in the config.
        overrides: Any other value by its dotted key, such as {"training.pairs_per_step": 40}.
        features: The optimisations, to switch them off one by one. None: as in the config.
        overwrite_cache: Build the latent cache again although it is there.
        resume_from: A checkpoint of another run to go on from. None: start new.
    """
    load_libraries_beside()
    say_reasons_first()
    changes = dict(zip(PARAMETERS.values(), (latent_dim, latent_tokens, epochs, seed), strict=True))
    changes["features"] = features.model_dump() if features else None
    chosen = {key: value for key, value in changes.items() if value is not None}
    try:
        _train(config, {**(overrides or {}), **chosen}, resume_from, overwrite_cache)
    except UpsError as error:
        return failed_with(error)
    return None


def _train(
    config: str, chosen: dict[str, Any], resume_from: str | None, overwrite_cache: bool
) -> None:
    try:
        resolved, changed = load_changed(config, chosen)
    except ConfigError as error:  # then not even the run's folder is known
        show_refusal(Path(config).stem, error)
        validate_config(error)
        raise
    if resolved.training.device != "cpu" and local_ranks(resolved) == 1:
        make_context_beside()  # a warm start has had it made since it was forked
    resume = Path(resume_from) if resume_from else None
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    run_id = context.flow_run.id
    run_dir = open_run_dir(resolved, run_id)
    run = RunState(resolved, run_dir, flow_run_id=run_id, changed=changed)
    run.provision = claim(run.run_dir)
    stop = threading.Event()
    deployment = context.flow_run.deployment_id
    pages = Pages(run)
    record = running(
        run, lambda: _report(run, pages), deployment=str(deployment) if deployment else None
    )
    with told_from_a_crash(run_id), record as trackers:
        try:
            store, refused = _open_store(resolved)  # no request, but a client is made
            validate_config(resolved, resume, run.run_dir, refused)
            _run_phases(run, store, stop, trackers, pages, resume, overwrite_cache)
        finally:
            stop.set()


def _open_store(config: RunConfig) -> tuple[ObjectStore | None, UpsError | None]:
    """The store, or what is wrong with its address: one fault among those of the whole run."""
    try:
        return open_store(config), None
    except UpsError as error:
        return None, error


def _run_phases(
    run: RunState,
    store: ObjectStore | None,
    stop: threading.Event,
    trackers: Trackers,
    pages: Pages,
    resume: Path | None,
    overwrite_cache: bool,
) -> None:
    config = run.config
    warm_up = warm_up_device.submit(config) if config.features.warm_up else None
    problems, downloads = config.data.problems, _Downloads()
    run.sharing = sharing_of(config)
    looking = Background(
        lambda: look(config, store, stop, logged, overwrite=overwrite_cache, sharing=run.sharing),
        "look ahead",
    )
    for split, problem in itertools.product(SPLITS, problems):
        wanted, label = (problem.name, split), config.data.label(problem, split)
        of_problem = config.of_problem(problem)
        downloads[wanted] = download.submit(of_problem, split, label, store, looking, stop)
        if not config.features.parallel_downloads and not comes_meanwhile(looking.result()):
            run.staged[wanted] = downloads[wanted].result()
    with ExitStack() as ended:
        entries: _Entries = {}
        scouted, found = None, looking.result()
        if comes_meanwhile(found):
            scouted = found
            ended.callback(scouted.close)
            entries = _stream(run, scouted, stop, ended)
        if run.latents is None:
            scouted, entries = _prepare(run, stop, downloads, warm_up, ended, overwrite_cache)
        latents = run.latents
        assert latents is not None
        step = warm_up.result() if warm_up else None
        # A test split that is here and cannot be scored ends the run before it is trained for.
        local = [problem.name for problem in config.data.problems if problem.is_local]
        arrived = [
            w for w, future in downloads.items() if w[0] in local or future.wrapped_future.done()
        ]
        _wait_for(run, downloads, arrived, None)

        def built() -> dict[str, str]:
            found = {name: future.result()["config_hash"] for name, future in entries.items()}
            return found or {name: entry.config_hash for name, entry in run.entries.items()}

        pushing, has_stepped = None, threading.Event()
        if run.sharing is not None:
            pushing = push_latents.submit(run.sharing, store, built, has_stepped, stop)

        def note_first_step(at: float) -> None:
            run.first_step_at = at
            has_stepped.set()
            trackers.start()
            if scouted is not None and entries:
                run.staged.update(scouted.so_far())
            pages.follow()

        run.result = train_operator(
            config,
            latents,
            run.run_dir,
            step,
            resume,
            note_first_step,
            run.note_first_epoch,
            run.note_steps,
            _ranked(run),
        )
        if entries:
            run.staged.clear()  # what is known of them is to be what was so in the end
        _wait_for(run, downloads, list(downloads), None)
        for name, future in entries.items():
            from ups.latents.build import CacheEntry  # it imports torch

            run.entries[name] = CacheEntry.model_validate(future.result())
            run.config_hashes[name] = run.entries[name].config_hash
        if run.sharing is not None:
            run.staged.update(run.sharing.fetched())
        test = {p.name: run.staged[p.name, "test"] for p in config.data.problems}
        run.scores = evaluate(config, run.result.checkpoint, test, latents.encoders, run.run_dir)
        if scouted is not None:
            scouted.remove_let_go()
        if pushing is not None:
            pushing.wait()


def _stream(
    run: RunState, scouted: Scouted | Hits, stop: threading.Event, ended: ExitStack
) -> _Entries:
    """Have training read latents as they come, unless all has to be there first: `run.latents`.

    Returns:
        Problem → the task that builds its entry, or pulls it.
    """
    config, pulled = run.config, not isinstance(scouted, Scouted)
    stream = stream_latents(config, scouted, run.sharing, stop)
    if stream is None:
        return {}
    ended.callback(stream.close)
    run.latents = stream.latents
    run.config_hashes = dict(scouted.keys)
    entries = _Entries()
    for name, key in scouted.keys.items():
        body, given = follow_latent_cache, {"overwrite": False, "reused": False, "pulled": pulled}
        build = cache_task(config, key, body=body, **given)
        entries[name] = build.submit(stream, name, key)
    return entries


def _prepare(
    run: RunState,
    stop: threading.Event,
    downloads: _Downloads,
    warm_up: PrefectFuture[Any] | None,
    ended: ExitStack,
    overwrite_cache: bool,
) -> tuple[Scouted | None, _Entries]:
    """Once train and val are here, encode and load them: `run.latents`.

    Returns:
        What is encoded while it is trained on, and the tasks that build its entries.
    """
    config, problems = run.config, run.config.data.problems
    overwrite = overwrite_cache or not config.features.reuse_cache
    encoded = [(problem.name, split) for problem in problems for split in ENCODED_SPLITS]
    if not overwrite and may_stream(config):
        _wait_for(run, downloads, encoded, warm_up)
        staged = {problem.name: run.staged_of(problem, ENCODED_SPLITS) for problem in problems}
        with suppress(NothingToFetch):
            scouted = Scouted.of_files(config, staged, stop)
            if entries := _stream(run, scouted, stop, ended):
                return scouted, entries
    for problem in problems:
        _wait_for(run, downloads, [(problem.name, split) for split in ENCODED_SPLITS], warm_up)
        _find_entry(run, problem, overwrite, stop)
    staged = {problem.name: run.staged_of(problem, ENCODED_SPLITS) for problem in problems}
    run.latents = load_latents(config, staged, run.entries or None, stop)
    return None, {}


def _ranked(run: RunState) -> Ranked | None:
    """What the ranks are started with, where several processes train."""
    if local_ranks(run.config) == 1:
        return None
    from ups.pipeline.launch import Ranked

    return Ranked.of_run(run)


def _find_entry(run: RunState, problem: Problem, overwrite: bool, stop: threading.Event) -> None:
    """Build or find the cache entry of a problem, in the main thread, where a signal reaches it."""
    config, encoded = run.config.of_problem(problem), run.staged_of(problem, ENCODED_SPLITS)
    key = compute_cache_hash(config, encoded)
    run.config_hashes[problem.name] = key
    if config.features.preload == "off":
        return
    from ups.latents.build import CacheEntry

    found = valid_generation(config.training.latent_cache_dir, key)
    overwrite = overwrite and has_to_build(run.run_dir, key, found)
    is_cached = not overwrite and found is not None
    build = cache_task(config, key, overwrite=overwrite, reused=is_cached)
    keep = [entry.generation for entry in run.entries.values()]
    spread = None
    if config.encodes_on_cluster:
        from tasks.cluster import parts_as_tasks

        spread = parts_as_tasks()
    state = build(config, encoded, key, overwrite, keep, stop, spread, return_state=True)
    entry = CacheEntry.model_validate(state.result())
    # What Prefect found was written by the run that built the entry.
    reused = entry.reused or state.name == "Cached"
    run.entries[problem.name] = entry.model_copy(update={"reused": reused})


def _wait_for(
    run: RunState,
    downloads: _Downloads,
    wanted: Sequence[ProblemSplit],
    warm_up: PrefectFuture[Any] | None,
) -> None:
    """Wait until these splits are staged; whatever fails meanwhile fails the run at once."""
    if all(split in run.staged for split in wanted):
        return
    splits = {future.task_run_id: split for split, future in downloads.items()}
    pending = [future for split, future in downloads.items() if split not in run.staged]
    if warm_up is not None:
        pending.append(warm_up)
    for future in as_completed(pending):
        try:
            result = future.result()
        except CancelledRun:  # what another one fails with ends the run
            continue
        if split := splits.get(future.task_run_id):
            run.staged[split] = result
        if all(split in run.staged for split in wanted):
            return


def _report(run: RunState, pages: Pages) -> None:
    """Publish the breakdown, and name the run after its cache entries, where the list shows it."""
    report_overhead(pages)
    if run.config_hash is not None:
        name = f"{run.title} [{run.config_hash}]{' reused' if run.cache_reused else ''}"
        with get_client(sync_client=True) as client:
            client.update_flow_run(run.flow_run_id, name=name)


if __name__ == "__main__":
    train_burgers()
