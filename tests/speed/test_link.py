"""The delaying proxy, and downloads through it; no namespaces, so that it runs anywhere."""

import time

import pytest

from speed import download, inputs, link, s3
from speed.harness import Comparison, Result
from speed.settings import Settings
from speed.worker import Worker

MIB = 1 << 20


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("objects")
    keys = s3.make_objects(folder, {"some": [3 * MIB, 2 * MIB]})
    log = tmp_path_factory.mktemp("log") / "s3.log"
    s3.without_blocks(folder, "some")
    with s3.serve(folder, log, [link.LOOPBACK]) as server:
        yield server, keys["some"]


def call(server, at, function, **arguments):
    with Worker("speed.clients", env=server.env(at.url)) as worker:
        return worker.call(function, bucket=s3.BUCKET, **arguments)


def test_every_client_fetches_whole_objects_over_loopback(served, tmp_path):
    server, keys = served
    plain = link.loopback(server.ports[link.LOOPBACK])
    settings = Settings(folder=tmp_path)
    job = download.Job(settings, server, plain, "some", keys, [], 5 * MIB)
    plainer = [key.replace("some/", "some-sha256/") for key in keys]
    for function, wanted in ("ours", keys), ("ours", plainer), ("boto", keys):
        inputs.empty(job.folder)
        found = call(server, plain, function, keys=wanted, folder=str(job.folder))
        assert found["seconds"] > 0
        sizes = sorted(p.stat().st_size for p in job.folder.glob("object-*"))
        assert sizes == [2 * MIB, 3 * MIB]
    inputs.empty(job.folder)
    sample = download._checked(job, lambda: download._program(job, download._rclone(job)))
    assert sample.extras["CPU s/GB"] > 0


def test_processor_seconds_of_the_same_downloads_are_rows_of_their_own():
    names = {"ours": 0.6, "s5cmd": 0.7, "ours, SHA-256": 1.4}
    results = [Result(n, "peer", [1.0], {"CPU s/GB": [cpu]}) for n, cpu in names.items()]
    row = Comparison("download", [*results, Result("nowhere", "bound", [0.1])])
    blocks, whole = (download._cpu_row(row, name) for name in ("ours", "ours, SHA-256"))
    assert [(r.name, r.role, r.values) for r in whole.results] == [
        ("s5cmd", "peer", [0.7]),
        ("ours, SHA-256", "ours", [1.4]),
    ]
    assert (blocks.reached(), whole.reached()) == ({"s5cmd": True}, {"s5cmd": False})


def test_the_proxy_delays_each_round_trip_and_holds_the_rate(served):
    server, keys = served
    port = server.ports[link.LOOPBACK]
    with link.shaped(None, port, 0.04 * link.GBIT, 40) as slow:
        started = time.monotonic()
        call(server, slow, "first_head", key=keys[0])
        assert time.monotonic() - started >= 0.08  # handshake and request
        found = call(server, slow, "socket_to_nowhere", keys=keys)
    assert found["seconds"] >= 5 * MIB * 8 / 0.04e9
