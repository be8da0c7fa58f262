"""What a run in ranks ends with: the cause, a stop that somebody asked for, or the result."""

import os
import signal
import socket
from multiprocessing import forkserver
from multiprocessing.connection import Client

import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from ups.errors import Interrupted, RankError
from ups.pipeline.exchange import Exchange, Said
from ups.pipeline.launch import start_server
from ups.pipeline.rank import Terminated, Word, _stop
from ups.training import checkpoint
from ups.training.ranks import _echo

KEY = b"a key"
ECHO = _echo("another rank ended")
GLOO = RuntimeError("rank 1: Connection reset by peer")
FULL = OSError(28, "No space left on device")


def failed(number):
    return ChildFailedError("run", {0: ProcessFailure(0, 4242, number, "/dev/null")})


@pytest.mark.parametrize(
    ("words", "error", "is_told", "expected", "message"),
    [
        ([(0, "stopped", None), (1, "stopped", None)], None, False, Interrupted, "it stopped"),
        ([(0, "stopped", None), (1, "stopped", None)], failed(1), False, Interrupted, "it stopped"),
        ([(0, "failed", ECHO), (1, "stopped", None)], failed(1), False, Interrupted, "it stopped"),
        ([(1, "stopped", None)], failed(-9), False, RankError, "rank 0 .* ended by SIGKILL"),
        ([(1, "failed", GLOO)], failed(-9), False, RankError, "rank 0 .* ended by SIGKILL"),
        ([(1, "failed", GLOO)], failed(1), False, RuntimeError, "reset by peer"),
        ([(0, "failed", FULL), (1, "stopped", None)], failed(1), True, OSError, "No space left"),
        ([(0, "failed", RankError("gone"))], failed(1), True, Interrupted, "it stopped"),
        ([(0, "failed", ECHO)], failed(-9), True, Interrupted, "it stopped"),
    ],
)
def test_the_end_of_ranks_is_a_stop_unless_one_was_killed_or_could_not_save(
    words, error, is_told, expected, message
):
    said = Said(2, {})
    said.take(Word(*word) for word in words)
    with pytest.raises(expected, match=message):
        said.require_all(error, is_told=is_told, stopped="it stopped")


def test_ranks_that_came_to_their_results_have_not_failed_however_they_ended():
    said = Said(2, {})
    said.take(Word(rank, "result", rank) for rank in range(2))
    assert said.ended == {0, 1}
    said.take(Word(rank, "gone", None) for rank in range(2))
    assert not said.has_lost
    said.require_all(failed(-15), is_told=True, stopped="it stopped")
    assert said.results == {0: 0, 1: 1}


def test_a_rank_whose_line_ends_before_it_has_said_how_it_ended_is_lost():
    with Exchange(KEY) as exchange:
        with socket.socket(socket.AF_UNIX) as killed:  # before it could say who it is
            killed.connect(exchange.address)
        with Client(exchange.address, "AF_UNIX", KEY) as line:
            line.send(Word(1, "started", (4242, 0.0)))
        said = Said(2, {})
        while not said.has_lost:
            said.take(exchange.words(1))
    assert said.pids == {1: 4242}


def test_a_checkpoint_that_a_rank_reads_as_it_is_stopped_is_not_said_to_be_damaged(
    tmp_path, tiny_config, monkeypatch
):
    path = tmp_path / "last.pt"
    checkpoint.save(path, tiny_config(), {"model": {}})
    monkeypatch.setattr(torch, "load", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        with pytest.raises(Terminated):
            checkpoint.load(path)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_sigterm_to_all_processes_leaves_the_server_alone_that_ranks_come_from(tiny_config):
    own = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    start_server(tiny_config(training__ranks=2))
    pid = forkserver._forkserver._forkserver_pid
    with open(f"/proc/{pid}/status") as status:
        (blocked,) = (int(line.split()[1], 16) for line in status if line.startswith("SigBlk"))
    assert blocked & 1 << (signal.SIGTERM - 1)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == own
