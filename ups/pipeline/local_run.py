"""A whole run in this process, without Prefect: download, cache, load, train, evaluate."""

from __future__ import annotations

import functools
import logging
import secrets
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ups.background import Background
from ups.config import SPLITS, RunConfig
from ups.data.sources import open_store, wanted
from ups.latents.ahead import look
from ups.latents.cached import Cached
from ups.latents.key import ENCODED_SPLITS
from ups.latents.scouted import Scouted
from ups.machine.cuda_context import make_context_beside
from ups.machine.devices import check_compile
from ups.machine.processes import process_started_at
from ups.machine.ranks import Place, ranks_to_start
from ups.machine.torch_import import collector_at_rest
from ups.pipeline.overhead import break_down, leave, leave_trace
from ups.pipeline.phases import (
    SourcesByProblem,
    build_caches,
    load_latents,
    push_entries,
    stage_splits,
)
from ups.pipeline.scoring import evaluate
from ups.pipeline.state import RunState, running, scores_of_complete_run, sharing_of
from ups.pipeline.timeline import Timeline
from ups.progress import Show
from ups.runs.breakdown import Breakdown, Span
from ups.runs.folder import find_run_dir, open_run_dir
from ups.runs.metrics import begin_summary
from ups.tracking import Trackers
from ups.validate.run import require_valid

if TYPE_CHECKING:
    from ups.data.objectstore import ObjectStore
    from ups.latents.loader import Latents
    from ups.latents.pulled_stream import PulledStream
    from ups.latents.sharing import Hits
    from ups.latents.stream import Stream
    from ups.training.loop import TrainResult
    from ups.training.ranks import Ranks

log = logging.getLogger(__name__)

BOUNDS = {
    "boot": "a new interpreter imports what reads the config",
    "warm-up": "import torch, and what trains and scores; build the model",
    "first step": "take one optimizer step",
}


class LocalRun:
    """A run of this process; what starts it is the start of the process."""

    def __init__(
        self,
        config: RunConfig,
        run_id: str | None,
        resume: Path | None,
        changed: Mapping[str, Any] | None = None,
    ) -> None:
        """Check that it can be made here, and open its folder.

        Args:
            run_id: of an interrupted run to go on with; None: a new one.
            resume: a checkpoint of another run to go on from.
            changed: what of the config is not as in its file, dotted key → value.
        Raises:
            ValidationFailed: the run would fail here; a line for each fault.
        """
        self._started_at = process_started_at()
        self._place = Place.of_environment()
        self._num_here = ranks_to_start(config)
        if config.training.device != "cpu" and self._place is None and self._num_here == 1:
            make_context_beside()
        self._timeline, self._resume = Timeline(), resume
        found = find_run_dir(config.runs_dir, run_id) if run_id else None
        with self._timeline.phase("validate"):
            require_valid(config, resume, found)
        self.config = config
        self._scores = {} if found is None else scores_of_complete_run(found, config)
        if found is not None and self._scores:
            self.run_dir = found
            return
        self.run_dir = open_run_dir(self.config, run_id or secrets.token_hex(4))
        self._state = RunState(self.config, self.run_dir, changed=changed or {})
        self._metrics: dict[str, float] = {}
        self._tracing: Background[None] | None = None

    def run(self, show: Show, command: str | None = None) -> dict[str, float]:
        """Go through the phases, once.

        Args:
            show: makes the callbacks that take how far each phase has got.
            command: as typed in a shell, for the run's record.
        Returns:
            The metrics of this run, as they stand in the last line of `metrics.jsonl`; of one that
            was complete before, the scores that it came to.
        """
        if self._scores:
            return self._scores
        with running(self._state, self._report, command=command) as trackers, ExitStack() as met:
            ranks = None
            if self._place is not None:
                from ups.pipeline.followers import joined

                with self._timeline.phase("rendezvous"):
                    ranks = met.enter_context(joined(self.config, self._place))
            self._run_phases(show, trackers, ranks)
        assert self._state.scores is not None, "the run was completed"
        return {**self._metrics, **self._state.scores.metrics()}

    def _run_phases(self, show: Show, trackers: Trackers, ranks: Ranks | None) -> None:
        run, config, phase = self._state, self.config, self._timeline.phase
        stop, has_stepped = threading.Event(), threading.Event()
        run.sharing = sharing_of(config)
        with ExitStack() as ended:
            ended.callback(stop.set)

            def open_and_look() -> tuple[ObjectStore | None, Scouted | Cached | Hits | None]:
                with phase("download"):
                    store = open_store(config)
                    return store, look(config, store, stop, show, sharing=run.sharing)

            if self._num_here > 1 and config.features.warm_up:
                from ups.pipeline.launch import start_server

                start_server(config)
            looking = Background(open_and_look, "look what there is to stream")
            with phase("warm-up"), collector_at_rest():
                import ups.training.evaluate  # noqa: F401 (what is imported here is there later)
                from ups.training.loop import train
                from ups.training.step import TrainStep

                check_compile(config)  # for a device that is there

            def warm_up() -> TrainStep | None:
                with phase("warm-up"):
                    if self._num_here > 1:
                        from ups.pipeline.launch import prepare_ranks

                        prepare_ranks(config)
                        return None
                    step = TrainStep(config)
                    step.warm_up()
                    return step

            warms_up = config.features.warm_up and ranks is None
            warming = Background(warm_up, "warm up") if warms_up else None
            with phase("download"):
                store, found = looking.result()
            scouted, stream, pulling, test = None, None, None, None
            halt = threading.Event()
            ended.callback(halt.set)
            if isinstance(found, Scouted):
                scouted = found
                ended.callback(scouted.close)
                self._timeline.follow("download", scouted.wait)
                stream = self._stream(scouted, stop, show)
            elif isinstance(found, Cached):
                test = self._prepare_cached(found, store, halt, show)
            elif found is not None:
                pulling, test = self._pull(found, store, halt, stop, show)
                ended.callback(found.close)
            if run.latents is None:
                scouted, stream = self._prepare(store, stop, show)
            if pulling is not None:
                ended.callback(pulling.close)
                ended.callback(halt.set)  # before it: the line is free, and nobody wants it
            if stream is not None:
                ended.callback(stream.close)
            latents = run.latents
            assert latents is not None

            def note_first_step(at: float) -> None:
                run.first_step_at = at
                has_stepped.set()
                trackers.start()
                if scouted is not None and stream is not None:
                    run.staged.update(scouted.so_far())
                so_far = self._break_down()  # whoever ends the process later, this is known
                so_far.save(self.run_dir)
                tracing = functools.partial(leave_trace, run, so_far)
                self._tracing = Background(tracing, "trace of the startup")
                begin_summary(self.run_dir, so_far.metrics)

            step = warming.result() if warming else None
            show_progress = show("trained", "steps")

            def note_steps(last: int, total: int) -> None:
                run.note_steps(last, total)
                show_progress(last, total)

            coming = stream or pulling

            def built() -> dict[str, str]:
                entries = run.entries if coming is None else coming.result()
                return {name: entry.config_hash for name, entry in entries.items()}

            pushing = None
            if (sharing := run.sharing) is not None:
                push = functools.partial(push_entries, sharing, store, built, has_stepped, stop)
                pushing = Background(push, "push the latents")
            if ranks is not None:
                from ups.pipeline.followers import meet_prepared

                with phase("rendezvous"):
                    meet_prepared(ranks, latents)
            with phase("train"):
                run.result = self._train(
                    latents,
                    ranks,
                    functools.partial(train, step=step),
                    on_first_step=note_first_step,
                    on_first_epoch=run.note_first_epoch,
                    progress=note_steps,
                )
            if scouted is not None and stream is not None:
                run.entries = stream.result()
                run.config_hashes = dict(scouted.keys)
                for problem, split in product(config.by_problem(), SPLITS):
                    run.staged[problem, split] = scouted.finished(problem, split)
            if pulling is not None:
                run.entries = pulling.result()
                run.staged.update(run.sharing.fetched() if run.sharing else {})
            if test is not None:
                self._note_staged(test.result())
            with phase("evaluate"):
                of_test = {p.name: run.staged[p.name, "test"] for p in config.data.problems}
                checkpoint, encoders = run.result.checkpoint, latents.encoders
                run.scores = evaluate(config, checkpoint, of_test, encoders, self.run_dir)
            if scouted is not None:
                scouted.remove_let_go()
            if pushing is not None:
                pushing.result()

    def _train(
        self,
        latents: Latents,
        ranks: Ranks | None,
        alone: Callable[..., TrainResult],
        **reports: Any,
    ) -> TrainResult:
        """In this process, alone or as rank 0 of those that were started with it, or in new ones.

        Args:
            alone: `ups.training.loop.train` with the step of this process.
            reports: callbacks of it.
        """
        config, run_dir, resume = self.config, self.run_dir, self._resume
        if self._num_here > 1:
            from ups.pipeline.launch import Ranked, train_in_ranks

            ranked = Ranked.of_run(self._state)
            return train_in_ranks(config, ranked, latents, run_dir, resume=resume, **reports)
        if ranks is not None:
            from ups.pipeline.followers import train_as_rank

            return train_as_rank(config, ranks, latents, run_dir, resume=resume, **reports)
        return alone(config, latents, run_dir, resume=resume, **reports)

    def _stream(self, scouted: Scouted, stop: threading.Event, show: Show) -> Stream | None:
        """Begin to encode what arrives; None where all has to be there first."""
        from ups.latents.stream import stream_latents

        with self._timeline.phase("load"):
            stream = stream_latents(self.config, scouted, stop, show)
        if stream is not None:
            self._follow(scouted, stream)
        return stream

    def _follow(self, scouted: Scouted, stream: Stream) -> None:
        self._state.latents = stream.latents
        self._state.config_hashes = dict(scouted.keys)
        self._timeline.follow("cache", stream.result)

    def _prepare(
        self, store: ObjectStore | None, stop: threading.Event, show: Show
    ) -> tuple[Scouted | None, Stream | None]:
        """Download all; then load all, or train on what is encoded meanwhile: that is returned."""
        from ups.latents.stream import stream_files

        config, phase = self.config, self._timeline.phase
        with phase("download"):
            staged = stage_splits(config, SPLITS, store, show)
            self._note_staged(staged)
        if config.features.reuse_cache:
            with phase("load"):
                begun = stream_files(config, staged, stop, show)
            if begun is not None:
                self._follow(*begun)
                return begun
        self._build_and_load(staged, show)
        return None, None

    def _prepare_cached(
        self, found: Cached, store: ObjectStore | None, halt: threading.Event, show: Show
    ) -> Background[SourcesByProblem]:
        """Load what is in the cache, and what other problems need; returns the fetch of test.

        Args:
            halt: ends that fetch.
        """
        config, phase = self.config, self._timeline.phase

        def fetch_test() -> SourcesByProblem:
            with phase("download"):
                return stage_splits(config, ("test",), store, show, stop=halt)

        fetching = Background(fetch_test, "fetch test")
        test = [source for own in config.by_problem().values() for source in wanted(own, "test")]
        if all(source.path.exists() for source in test):
            fetching.result()  # what cannot be scored is not trained for
        with phase("download"):
            staged = stage_splits(config, ENCODED_SPLITS, store, show, known=found.sources)
            self._note_staged(staged)
        self._build_and_load(staged, show)
        return fetching

    def _pull(
        self,
        hits: Hits,
        store: ObjectStore | None,
        halt: threading.Event,
        stop: threading.Event,
        show: Show,
    ) -> tuple[PulledStream | None, Background[SourcesByProblem]]:
        """Begin to pull what is trained on; or load it, where all has to be there first.

        Args:
            halt: ends the fetch of test, which leaves the line to what is pulled.
        Returns: the former, and that fetch.
        """
        from ups.latents.pulled_stream import stream_pulled

        config, phase, run = self.config, self._timeline.phase, self._state
        assert run.sharing is not None

        def fetch_test() -> SourcesByProblem:
            hits.wait_until_over(halt)
            with phase("download"):
                return stage_splits(config, ("test",), store, show, stop=halt)

        with phase("load"):
            pulling = stream_pulled(config, run.sharing, hits, stop, show)
        fetching = Background(fetch_test, "fetch test")
        self._note_staged(hits.sources)
        if pulling is None:
            self._build_and_load(hits.sources, show)
        else:
            run.latents, run.config_hashes = pulling.latents, dict(hits.keys)
            self._timeline.follow("cache", pulling.result)
        return pulling, fetching

    def _build_and_load(self, staged: SourcesByProblem, show: Show) -> None:
        run, config, phase = self._state, self.config, self._timeline.phase
        if config.features.preload != "off":
            with phase("cache"):
                overwrite = not config.features.reuse_cache
                run.entries = build_caches(config, staged, show, overwrite=overwrite)
            run.config_hashes = {name: entry.config_hash for name, entry in run.entries.items()}
        with phase("load"):
            run.latents = load_latents(config, staged, run.entries or None)

    def _note_staged(self, staged: SourcesByProblem) -> None:
        for name, splits in staged.items():
            for split in SPLITS:
                if split in splits:
                    self._state.staged[name, split] = splits[split]

    def _break_down(self) -> Breakdown:
        spans = self._timeline.spans
        boot = Span(phase="boot", name="boot", start=self._started_at, end=spans[0].start)
        return break_down(
            self._state,
            [boot, *spans],
            triggered_at=self._started_at,
            start_mode="cold",
            bounds=BOUNDS,
        )

    def _report(self) -> None:
        breakdown = self._break_down()
        leave(breakdown, self.run_dir)
        if self._tracing is not None and (error := self._tracing.error()) is not None:
            log.warning("the trace of the startup could not be written: %s", error)
        leave_trace(self._state, breakdown)
        self._metrics = breakdown.metrics
