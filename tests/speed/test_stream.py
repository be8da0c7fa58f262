"""The processes of `stream`: what they leave, and what they train."""

import contextlib
import signal

import psutil
import pytest

from speed import link, s3, stream_inputs, stream_peers, stream_runs
from speed.settings import Settings
from ups.config import load_config
from ups.models.build import build_operator


@pytest.fixture
def job(tmp_path):
    server, plain = s3.Server({}, "key", "secret"), link.loopback(9)
    data_set = stream_inputs.DataSet(tmp_path, (8, 41, 256))
    made = stream_runs.Job(Settings(tmp_path), server, plain, data_set, is_whole_epoch=False)
    made.folder.mkdir()
    return made


def test_ctrl_c_ends_a_contender_and_what_it_has_started(job):
    started = []

    def measure():
        with stream_runs.started(job, ["sh", "-c", "sleep 60 & echo ready; wait"]) as process:
            stream_runs.wait_for(process, job.log.read_text, job)
            while not (children := psutil.Process(process.pid).children()):
                pass
            started.extend([process, *children])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure()
    process, child = started
    assert process.returncode == -signal.SIGKILL
    with contextlib.suppress(psutil.NoSuchProcess):  # nobody may have asked what became of it
        assert child.wait(5) is None or child.status() == psutil.STATUS_ZOMBIE


def test_a_contender_that_ends_early_is_told_with_what_it_said(job):
    def measure():
        with stream_runs.started(job, ["sh", "-c", "echo no such bucket; exit 3"]) as process:
            stream_runs.wait_for(process, lambda: None, job)

    with pytest.raises(RuntimeError, match="exit code 3: no such bucket"):
        measure()


def test_the_network_of_the_peers_is_of_the_operators_size():
    ours = build_operator(load_config("smoke"))
    peers = stream_peers.PatchNet(1024)
    num_ours, num_peers = (sum(p.numel() for p in m.parameters()) for m in (ours, peers))
    assert abs(num_peers / num_ours - 1) < 0.1
