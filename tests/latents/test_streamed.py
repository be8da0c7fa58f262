"""Ranks go on, or stop, before the same step, whatever comes and whoever wants to stop."""

import threading
import time

import numpy as np
import pytest
import torch

from ups.background import Background
from ups.errors import CannotStream, ChecksumMismatch
from ups.latents.board import Board
from ups.latents.streamed import HostArrival, RankArrival, Room

ROWS = np.arange(2)


@pytest.fixture
def board():
    return Board.make(4)


@pytest.fixture
def host(board):
    return HostArrival(board, [], {"burgers1d": {"sources": "all of them"}})


@pytest.fixture
def opened(board, host):
    """`opened(leads)`: the arrival of a rank, its key fields, and what was brought to it."""

    def open_(leads):
        own = Board.open(board.memory.path, 4)
        arrival, fields, brought = RankArrival(own, [], leads=leads), {}, []
        following = Background(
            lambda: arrival.follow(lambda *rows: brought.append(rows), 3, fields), "follow"
        )
        return arrival, fields, brought, following

    return open_


def never():
    return False


def test_a_rank_takes_a_step_once_rank_0_does_and_its_rows_are_there(opened, host):
    (first, *_), (other, _, brought, _) = opened(True), opened(False)
    waiting = Background(lambda: other.wait_for(ROWS, never), "wait")
    host.note(0, 2)
    assert not waiting.is_done(0.1)
    assert first.wait_for(ROWS, never)
    assert waiting.result()
    assert brought == [("train", 0, 2)]
    host.note(2, 4)
    host.settle()
    assert first.wait_settled(never)
    assert other.wait_settled(never)
    assert other.wait_settled(never), "once for all"
    assert sorted(brought) == [("train", 0, 2), ("train", 2, 4), ("val", 0, 3)]


def test_the_latents_are_of_what_the_sources_turned_out_to_be(opened, host):
    _, fields, _, following = opened(False)
    host.settle()
    following.result()
    assert fields == {"burgers1d": {"sources": "all of them"}}


@pytest.mark.parametrize("asked", ["rank 0", "the other", "both"])
def test_where_one_rank_is_asked_to_stop_both_do_before_the_same_step(opened, asked):
    (first, *_), (other, *_) = opened(True), opened(False)
    stop = threading.Event()
    began = time.monotonic()

    def wait(arrival, name):
        def is_asked():
            return stop.is_set() and asked in (name, "both")

        while not arrival.wait_for(ROWS, is_asked):
            if arrival.stops(is_asked()):
                return False
        return True

    waits = [Background(lambda: wait(first, "rank 0"), "0")]
    waits.append(Background(lambda: wait(other, "the other"), "1"))
    assert not waits[1].is_done(0.1)
    stop.set()
    assert [waiting.result() for waiting in waits] == [False, False]
    assert time.monotonic() - began < 1.5, "nobody waited for one that is gone"


def test_a_rank_asked_to_stop_does_so_though_rank_0_is_gone(opened, monkeypatch):
    monkeypatch.setattr("ups.latents.streamed.PARTING_S", 0.1)
    (other, *_) = opened(False)
    assert not other.wait_for(ROWS, lambda: True)


def test_all_ranks_fail_with_what_the_stream_fails_with(opened, host):
    ranks = opened(True), opened(False)
    host.fail(ChecksumMismatch("s3://a/b", 64 * "0", 64 * "1"))
    for arrival, *_ in ranks:
        with pytest.raises(ChecksumMismatch, match="s3://a/b"):
            arrival.wait_for(ROWS, never)


def test_a_map_that_others_opened_outlives_its_owner():
    board = Board.make(4)
    other = Board.open(board.memory.path, 4)
    board.is_there[1] = True
    del board
    assert other.is_there.tolist() == [False, True, False, False]
    assert torch.frombuffer(other.memory.map, dtype=torch.uint8)[-3] == 1


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_latents_without_room_in_memory_do_not_stream(tiny_config, num_ranks):
    with pytest.raises(CannotStream, match="no room in memory"):
        Room(tiny_config(training__ranks=num_ranks), 10**18, "cpu")
