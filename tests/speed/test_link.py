"""The delaying proxy, and downloads through it; no namespaces, so that it runs anywhere."""

import time

import pytest

from speed import download, inputs, link, s3
from speed.settings import Settings
from speed.worker import Worker

MIB = 1 << 20


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("objects")
    keys = s3.make_objects(folder, {"some": [3 * MIB, 2 * MIB]})
    log = tmp_path_factory.mktemp("log") / "s3.log"
    with s3.serve(folder, log, [link.LOOPBACK]) as server:
        yield server, keys["some"]


def call(server, at, function, **arguments):
    with Worker("speed.clients", env=server.env(at.url)) as worker:
        return worker.call(function, bucket=s3.BUCKET, **arguments)


def test_every_client_fetches_whole_objects_over_loopback(served, tmp_path):
    server, keys = served
    plain = link.loopback(server.ports[link.LOOPBACK])
    settings = Settings(folder=tmp_path)
    job = download.Job(settings, server, plain, "some", keys, 5 * MIB)
    for function in ("ours", "boto"):
        inputs.empty(job.folder)
        found = call(server, plain, function, keys=keys, folder=str(job.folder))
        assert found["seconds"] > 0
        sizes = sorted(p.stat().st_size for p in job.folder.glob("object-*"))
        assert sizes == [2 * MIB, 3 * MIB]
    inputs.empty(job.folder)
    sample = download._checked(job, lambda: download._program(job, download._rclone(job)))
    assert sample.extras["CPU s/GB"] > 0


def test_the_proxy_delays_each_round_trip_and_holds_the_rate(served):
    server, keys = served
    port = server.ports[link.LOOPBACK]
    with link.shaped(None, port, 0.04 * link.GBIT, 40) as slow:
        started = time.monotonic()
        call(server, slow, "first_head", key=keys[0])
        assert time.monotonic() - started >= 0.08  # handshake and request
        found = call(server, slow, "socket_to_nowhere", keys=keys)
    assert found["seconds"] >= 5 * MIB * 8 / 0.04e9
