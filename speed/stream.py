"""Stream: the time to the first step against the size of the data set, over two links.

Beside the streaming start: this project with all fetched first, and what is taken instead of it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from speed import inputs, link, s3, stream_inputs, stream_picture, stream_runs
from speed.harness import Comparison, Contender, Result, Run, alternate, ours_first
from speed.link import GBIT
from speed.settings import Settings
from speed.stream_inputs import PEERS
from speed.stream_runs import CONFIG, IDLE, TIME_STRIDE, WAITED, Job
from ups.machine.host import kind
from ups.startup.measure.prepare import touch_memory

NUM_WHOLE_EPOCHS = 1  # of the data sets, the smallest: there the runs go on to the end of epoch 1
FEW_REPEATS, MANY_BYTES = 3, 0.4e9  # of a data set so large
NOTES = [
    "First step: from the start of a process, imports included, until its first optimizer step is "
    "done; no data, no cache. The process is ended there, with the smallest data set at the end of "
    f"epoch 1. The data sets of 0.5 GB and more have {FEW_REPEATS} repeats.",
    f"streaming and sequential: `ups train {CONFIG}` with features.stream on and off: val and test "
    "are fetched, too, SHA-256 is compared, and an encoder is fitted.",
    "boto3 + h5py: download_file as it comes, then a DataLoader over the file. LitData, Mosaic "
    "Streaming: their data sets over a copy of train that was converted before, which is not "
    "counted (64 MB chunks, shuffled). None of the three compares a digest; each trains a network "
    "of the same width and tokens on the fields, on one thread, which is faster than two for steps "
    "so small, with two workers. "
    f"All train on every {TIME_STRIDE}th frame, as many pairs a step.",
    "idle: seconds from the start of the process to the end of epoch 1 without a step to compute: "
    "until the epoch began, and then what steps waited for data (`waited s`).",
    "The server (rclone serve s3) is asked for no MD5; its files lie in the page cache.",
]


def prepare(settings: Settings) -> None:
    """Make the data sets."""
    stream_inputs.make(settings)


def run(settings: Settings) -> Iterator[Comparison]:
    data_sets = stream_inputs.data_sets(settings)
    trial = "" if settings.is_default else "-trial"
    picture = settings.results / f"stream-{kind(settings.device)}{trial}.png"
    notes, panels = [*NOTES, f"The picture: {picture.name}."], {}
    with ExitStack() as stack:
        pair, refused = stack.enter_context(link.namespace())
        hosts = [link.LOOPBACK] + ([pair.server_address] if pair else [])
        log = settings.folder / "s3-stream.log"
        server = stack.enter_context(s3.serve(data_sets[0].folder, log, hosts, hashes=False))
        ways = [link.loopback(server.ports[link.LOOPBACK])]
        if pair is not None:
            shape = link.shaped(pair, server.ports[pair.server_address], GBIT, 0.0)
            ways.append(stack.enter_context(shape))
        for way in ways:
            panels[way.name] = rows = []
            for number, data_set in enumerate(data_sets):
                job = Job(settings, server, way, data_set, number < NUM_WHOLE_EPOCHS)
                rows.append(row := _compare(job, [*notes, f"{way.name}: {way.how}."]))
                yield row
                if job.is_whole_epoch:
                    yield _idle(job, row)
    if pair is None:
        why = f"left out, as there is no network namespace with tc here: {refused}"
        yield Comparison("first step, 1 Gbit/s", [Result("streaming", "ours", failed=why)])
    stream_picture.draw([d.num_bytes / 1e9 for d in data_sets], panels, picture)


def _compare(job: Job, notes: Sequence[str]) -> Comparison:
    def clean() -> None:
        inputs.empty(job.folder)
        touch_memory(job.data_set.num_bytes)

    def convert(kind: str) -> None:
        stream_inputs.convert(job.settings, job.data_set, kind)
        clean()

    runs: dict[str, Run] = {
        "streaming": partial(stream_runs.ups_train, job, "on"),
        "sequential": partial(stream_runs.ups_train, job, "off"),
        "boto3 + h5py": partial(stream_runs.peer, job, "boto3", Path(sys.executable)),
    }
    contenders = ours_first(runs, clean)
    contenders += [
        Contender(
            name,
            "peer",
            partial(stream_runs.peer, job, kind, job.settings.peers),
            partial(convert, kind),
        )
        for name, kind in PEERS.items()
    ]
    repeats = job.settings.repeats
    if job.data_set.num_bytes >= MANY_BYTES:
        repeats = min(FEW_REPEATS, repeats)
    results = alternate(contenders, repeats, warm_ups=0)
    inputs.empty(job.folder)
    return Comparison(phase=f"first step, {job.place}", results=results, notes=list(notes))


def _idle(job: Job, row: Comparison) -> Comparison:
    """The seconds without a step, of the same runs."""
    results = []
    for of_steps in row.results:
        extras = {WAITED: of_steps.extras.pop(WAITED)} if of_steps.values else {}
        values = of_steps.extras.pop(IDLE, [])
        results.append(Result(of_steps.name, of_steps.role, values, extras, of_steps.failed))
    return Comparison(phase=f"idle to the end of epoch 1, {job.place}", results=results)
