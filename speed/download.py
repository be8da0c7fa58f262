"""Download: one object and three at once, over three links, beside s5cmd, rclone and boto3."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from speed import inputs, link, s3
from speed.harness import Comparison, Contender, Result, Run, Sample, alternate, ours_first
from speed.link import Link
from speed.s3 import BIN_DIR, BUCKET, Server
from speed.settings import Settings
from speed.worker import Worker
from ups.startup.measure.prepare import touch_memory

MIB = 1 << 20
# A GiB through 1 Gbit/s takes 9 s a contender and repeat: there the objects are smaller.
LOOPBACK_MIB = {"one": [1024], "three": [128, 128, 128]}
SHAPED_MIB = {"one-shaped": [48], "three-shaped": [16, 16, 16]}
RATE_BIT_S, RTT_MS = link.GBIT, 30.0
STREAMS, PART_MIB = 8, 32
OURS, OURS_SHA256, CPU = "ours", "ours, SHA-256", "CPU s/GB"
NOTES = [
    "Download: files into the page cache (no client forces them to the disk), removed before each "
    "repeat, and as much memory touched as they need; the objects lie in the server's page cache. "
    "Ours compares XXH3 of each MiB with the manifest's, or, as `ours, SHA-256`, the digest of the "
    "whole where the manifest has no other; rclone compares the MD5; s5cmd and boto3 compare none. "
    "Client CPU: processor seconds of the client alone, in the same downloads. A new client for "
    "each; making it in Python is not counted (`client s`), nor are imports; starting the process "
    "of s5cmd and rclone is.",
    f"s5cmd: cp --concurrency {STREAMS} --part-size {PART_MIB}; rclone: copy "
    f"--multi-thread-streams {STREAMS} --multi-thread-chunk-size {PART_MIB}M --transfers 3; boto3: "
    "download_file as it comes, an object a thread.",
    "Objects are smaller on the shaped links, so fixed costs weigh more there than on a data set.",
    "socket → nowhere: the object over one connection into a buffer that is not kept. link "
    "rate: the payload at the rate of the link; Ethernet, IP and TCP headers take 5 % of it.",
]


@dataclass(frozen=True, slots=True)
class Job:
    """One download that all contenders do: objects, over a link, into a folder."""

    settings: Settings
    server: Server
    link: Link
    prefix: str
    keys: list[str]
    sha256_keys: list[str]  # the same objects, in whose manifest is no digest of their blocks
    num_bytes: int

    @property
    def folder(self) -> Path:
        return self.settings.folder / "downloads"

    @property
    def env(self) -> dict[str, str]:
        return self.server.env(self.link.url)


def prepare(settings: Settings) -> None:
    """Make the objects."""
    s3.make_objects(settings.folder / "s3", _sizes(settings))


def run(settings: Settings) -> Iterator[Comparison]:
    sizes, folder = _sizes(settings), settings.folder / "s3"
    keys = s3.make_objects(folder, sizes)
    sha256_keys = {prefix: s3.without_blocks(folder, prefix) for prefix in LOOPBACK_MIB}
    with contextlib.ExitStack() as stack:
        pair, _ = stack.enter_context(link.namespace())
        hosts = [link.LOOPBACK] + ([pair.server_address] if pair else [])
        server = stack.enter_context(s3.serve(folder, settings.folder / "s3.log", hosts))
        plain = link.loopback(server.ports[link.LOOPBACK])
        notes = [*NOTES, _warm_server(server, plain, [*keys.values(), *sha256_keys.values()])]

        def compare(way: Link, prefix: str, *further: str) -> Comparison:
            of_sha256 = sha256_keys.get(prefix, [])
            job = Job(settings, server, way, prefix, keys[prefix], of_sha256, sum(sizes[prefix]))
            return _compare(job, [*notes, *further])

        for prefix in LOOPBACK_MIB:
            row = compare(plain, prefix)
            yield row
            yield from (_cpu_row(row, name) for name in (OURS, OURS_SHA256))
        for rtt_ms in (0.0, RTT_MS):
            with link.shaped(pair, server.ports[hosts[-1]], RATE_BIT_S, rtt_ms) as shaped:
                for prefix in SHAPED_MIB:
                    yield compare(shaped, prefix, f"{shaped.name}: {shaped.how}.")
    inputs.empty(settings.folder / "downloads")


def _sizes(settings: Settings) -> dict[str, list[int]]:
    """Prefix → bytes of each object."""
    return {
        prefix: [max(2, round(n * settings.size)) * MIB for n in mib]
        for prefix, mib in {**LOOPBACK_MIB, **SHAPED_MIB}.items()
    }


def _cpu_row(row: Comparison, ours: str) -> Comparison:
    """Processor seconds of the clients, by the downloads of a row, beside s5cmd's."""
    results = [
        Result(r.name, "ours" if r.name == ours else "peer", r.extras.get(CPU, []), {}, r.failed)
        for r in row.results
        if r.role != "bound" and r.name in (ours, "s5cmd", "rclone", "boto3")
    ]
    phase = f"client CPU{ours.removeprefix(OURS)}, {row.phase}"
    return Comparison(phase, results, unit=CPU, targets={"s5cmd": 1}, notes=row.notes)


def _warm_server(server: Server, plain: Link, keys: list[list[str]]) -> str:
    """Ask for each object once: rclone hashes it for its first answer, and remembers."""
    with Worker("speed.clients", env=server.env(plain.url)) as worker:

        def ask(key: str) -> float:
            seconds: float = worker.call("first_head", bucket=BUCKET, key=key)
            return seconds

        largest = keys[0][0]
        first, second = ask(largest), ask(largest)
        for key in (key for of_prefix in keys for key in of_prefix):
            ask(key)
    return (
        "The server (rclone serve s3, MD5 as ETag) hashes an object when it is first asked for: "
        f"{first:.2f} s for the largest, then {second:.3f} s. It was asked for each before timing."
    )


def _compare(job: Job, notes: list[str]) -> Comparison:
    many = f"{len(job.keys)} objects at once" if len(job.keys) > 1 else "one object"
    with Worker("speed.clients", prefix=job.link.prefix, env=job.env) as worker:
        objects = {"bucket": BUCKET, "keys": job.keys}
        into = {**objects, "folder": str(job.folder)}

        def clean() -> None:
            inputs.empty(job.folder)
            touch_memory(job.num_bytes)

        def python(function: str, **arguments: object) -> Sample:
            found = worker.call(function, **arguments)
            return _sample(job, found["seconds"], found["cpu_s"], found.get("client_s"))

        runs: dict[str, Run] = {
            OURS: lambda: python("ours", **into),
            "s5cmd": lambda: _program(job, _s5cmd(job)),
            "rclone": lambda: _program(job, _rclone(job)),
            "boto3": lambda: python("boto", **into),
        }
        if job.sha256_keys:
            runs[OURS_SHA256] = lambda: python("ours", **into | {"keys": job.sha256_keys})
        checked = {name: partial(_checked, job, run) for name, run in runs.items()}
        contenders = ours_first(checked, clean)
        if job.link.rate_bit_s is None and len(job.keys) == 1:
            bare = partial(python, "socket_to_nowhere", **objects)
            contenders.append(Contender("socket → nowhere", "bound", bare, clean))
        worker.call("first_head", bucket=BUCKET, key=job.keys[0])  # what botocore loads at first
        results = alternate(contenders, job.settings.repeats, warm_ups=0)
        if job.link.rate_bit_s is not None:
            seconds = job.num_bytes * 8 / job.link.rate_bit_s
            results.append(Result("link rate", "bound", [seconds]))
        imports = f"Imports of the Python clients, not counted: {worker.import_s:.1f} s."
    return Comparison(
        phase=f"download, {many}, {job.num_bytes / MIB:.0f} MiB, {job.link.name}",
        results=results,
        targets={"s5cmd": 1, "rclone": 1, "boto3": 1},
        notes=[*notes, imports],
    )


def _s5cmd(job: Job) -> list[str]:
    program = str(job.settings.peers.with_name("s5cmd"))
    options = ["--concurrency", str(STREAMS), "--part-size", str(PART_MIB)]
    return [program, "cp", *options, f"s3://{BUCKET}/{job.prefix}/object-*", f"{job.folder}/"]


def _rclone(job: Job) -> list[str]:
    options = ["--multi-thread-streams", str(STREAMS), "--multi-thread-cutoff", "16M"]
    options += ["--multi-thread-chunk-size", f"{PART_MIB}M", "--transfers", "3"]
    options += ["--include", "object-*"]
    source = f":s3:{BUCKET}/{job.prefix}"
    return [str(BIN_DIR / "rclone"), "copy", source, str(job.folder), *options]


def _program(job: Job, command: list[str]) -> Sample:
    """Run a program; its processor seconds are those of the process that ended."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [*job.link.prefix, *command],
        env={**os.environ, **job.env},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    with process.stderr:
        said = process.stderr.read()
        _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}: {said.strip()[-300:]}")
    return _sample(job, seconds, used.ru_utime + used.ru_stime)


def _sample(job: Job, seconds: float, cpu_s: float, client_s: float | None = None) -> Sample:
    extras = {CPU: cpu_s / (job.num_bytes / 1e9)}
    if client_s is not None:
        extras["client s"] = client_s
    return Sample(seconds, extras)


def _checked(job: Job, run: Run) -> float | Sample:
    """What a download measures, if what has arrived has the objects' size."""
    sample = run()
    arrived = sum(p.stat().st_size for p in job.folder.iterdir() if p.name.startswith("object-"))
    if arrived != job.num_bytes:
        raise RuntimeError(f"{arrived} bytes arrived, expected {job.num_bytes}")
    return sample
