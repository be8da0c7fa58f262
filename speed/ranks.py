"""Ranks: the time to the first step of two of them, where data stream and where all is there first.

Over 1 Gbit/s, on a machine that has no data; beside them one process that streams.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

from speed import inputs, link, s3, stream_inputs, stream_runs
from speed.harness import Comparison, Result, Run, alternate, ours_first
from speed.link import GBIT
from speed.settings import Settings
from speed.stream_runs import CONFIG, IDLE, WAITED, Job
from ups.startup.measure.prepare import touch_memory

NOTES = [
    f"All are `ups train {CONFIG}` from the start of its process to the end of epoch 1, where it "
    "is ended; the figure is the first step of the slowest rank. No data, no cache.",
    "2 ranks share the two cores, so they compute no faster than one process.",
]


def prepare(settings: Settings) -> None:
    """Make the smallest data set of `stream`."""
    stream_inputs.make_files(settings, stream_inputs.data_sets(settings)[:1])


def run(settings: Settings) -> Iterator[Comparison]:
    data_set = stream_inputs.data_sets(settings)[0]
    with ExitStack() as stack:
        pair, refused = stack.enter_context(link.namespace())
        hosts = [link.LOOPBACK] + ([pair.server_address] if pair else [])
        log = settings.folder / "s3-ranks.log"
        server = stack.enter_context(s3.serve(data_set.folder, log, hosts, hashes=False))
        port = server.ports[pair.server_address if pair else link.LOOPBACK]
        way = stack.enter_context(link.shaped(pair, port, GBIT, 0.0))
        job = Job(settings, server, way, data_set, True)

        def clean() -> None:
            inputs.empty(job.folder)
            touch_memory(data_set.num_bytes)

        two = {"training.ranks": 2}
        runs: dict[str, Run] = {
            "2 ranks, streaming": partial(stream_runs.ups_train, job, "on", two),
            "2 ranks, sequential": partial(stream_runs.ups_train, job, "off", two),
            "1 process, streaming": partial(stream_runs.ups_train, job, "on"),
        }
        results = alternate(ours_first(runs, clean), settings.repeats, warm_ups=0)
        clean()
        how = f"{way.name}: {way.how}" + (f"; {refused}" if refused else "")
        waited = [Result(of.name, of.role, of.extras.pop(IDLE, [])) for of in results]
        for of in results:
            of.extras.pop(WAITED, None)
        yield Comparison(f"first step, {job.place}", results, notes=[*NOTES, how])
        yield Comparison(f"idle to the end of epoch 1, {job.place}", waited)
