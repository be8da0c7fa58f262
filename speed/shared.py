"""Shared: latents that another machine has pushed against the fields that they are made of.

Over 1 Gbit/s, on a machine that has neither: seconds to the first step, bytes over the link and CPU
seconds until the end of epoch 1.
"""

from __future__ import annotations

import os
import resource
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from speed import inputs, link, s3, stream_inputs, stream_runs
from speed.harness import Comparison, Result, Run, Sample, alternate, ours_first
from speed.link import GBIT, Pair
from speed.measure import run_checked
from speed.s3 import BUCKET
from speed.settings import Settings
from speed.stream_inputs import DataSet
from speed.stream_runs import CONFIG, IDLE, Job
from speed.worker import PROJECT_DIR
from ups.startup.measure.prepare import touch_memory

MEASURED = (0, 2)  # of the data sets of `stream`: 0.25 and 1 GB
LINKED, CPU = "MB over the link", "CPU s"
PUSH_TIMEOUT_S = 300
MOST_REPEATS = {0: 5, 2: 3}
NOTES = [
    f"Both are `ups train {CONFIG}` from the start of its process to the end of epoch 1, where it "
    "is ended; the figure is the first step. No data, no cache.",
    "streaming: rows are fetched and encoded as training wants them. shared latents: the same with "
    "cache.remote, where the entry was pushed before, which is not counted.",
    f"{LINKED}: what the server's device has sent, headers of packets included; loopback tells "
    "none. CPU s: of the process, without the server's.",
]


def prepare(settings: Settings) -> None:
    """Make the data sets."""
    stream_inputs.make_files(settings, _data_sets(settings))


def _data_sets(settings: Settings) -> list[DataSet]:
    data_sets = stream_inputs.data_sets(settings)
    return [data_sets[n] for n in MEASURED if n < len(data_sets)] or data_sets[:1]


def run(settings: Settings) -> Iterator[Comparison]:
    data_sets = _data_sets(settings)
    prefix = f"shared-{os.getpid()}"  # the server keeps what it has read of a folder
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, data_sets[0].folder / BUCKET / prefix, ignore_errors=True)
        pair, refused = stack.enter_context(link.namespace())
        hosts = [link.LOOPBACK] + ([pair.server_address] if pair else [])
        log = settings.folder / "s3-shared.log"
        server = stack.enter_context(s3.serve(data_sets[0].folder, log, hosts, hashes=False))
        port = server.ports[pair.server_address if pair else link.LOOPBACK]
        way = stack.enter_context(link.shaped(pair, port, GBIT, 0.0))
        loopback = link.loopback(server.ports[link.LOOPBACK])
        remote = {"cache.remote": f"s3://{BUCKET}/{prefix}"}
        for number, data_set in zip(MEASURED, data_sets, strict=False):
            push(Job(settings, server, loopback, data_set, True), remote)
            job = Job(settings, server, way, data_set, True)
            runs: dict[str, Run] = {
                "shared latents": partial(_measure, job, pair, remote),
                "streaming": partial(_measure, job, pair, {}),
            }
            contenders = ours_first(runs, partial(_clean, job))
            repeats = min(settings.repeats, MOST_REPEATS[number])
            results = alternate(contenders, repeats, warm_ups=0)
            inputs.empty(job.folder)
            how = f"{way.name}: {way.how}" + (f"; {refused}" if refused else "")
            row = Comparison(f"first step, {job.place}", results, notes=[*NOTES, how])
            yield row
            yield from _split(job, row)


def push(job: Job, remote: Mapping[str, str]) -> None:
    """Build the entry, and have it lie in the bucket."""
    _clean(job)
    options = stream_runs.sets({**stream_runs.changes(job, "on"), **remote})
    command = [sys.executable, "-m", "deployments.cli.app", "cache", "build", CONFIG, *options]
    env = {**os.environ, **job.server.env(job.link.url)}
    run_checked(command, timeout_s=PUSH_TIMEOUT_S, env=env, cwd=PROJECT_DIR)


def _clean(job: Job) -> None:
    inputs.empty(job.folder)
    touch_memory(job.data_set.num_bytes)


def _measure(job: Job, pair: Pair | None, more: Mapping[str, str]) -> Sample:
    sent, used = _sent_bytes(pair), _cpu_s()
    sample = stream_runs.ups_train(job, "on", more)
    extras = {**sample.extras, CPU: _cpu_s() - used}
    if pair is not None:
        extras[LINKED] = (_sent_bytes(pair) - sent) / 1e6
    return Sample(sample.value, extras)


def _sent_bytes(pair: Pair | None) -> int:
    if pair is None:
        return 0
    device = Path("/sys/class/net") / pair.server_device
    return int((device / "statistics" / "tx_bytes").read_text())


def _cpu_s() -> float:
    """Of all processes that were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _split(job: Job, row: Comparison) -> Iterator[Comparison]:
    """The other figures of the same runs, a row each."""
    for name, unit in ((LINKED, "MB"), (CPU, "s"), (IDLE, "s")):
        results = [
            Result(of.name, of.role, of.extras.pop(name, []), failed=of.failed)
            for of in row.results
        ]
        if any(result.values for result in results):
            yield Comparison(f"{name}, {job.place}", results, unit)
