"""Several processes score the test split as one would; they stop and fail together."""

import functools
import os
import signal
import threading
import time
from multiprocessing.connection import Listener
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.machines import ranks_alive
from ups.data.sources import open_file
from ups.errors import Interrupted, RankError
from ups.latents.encode import fit_encoder
from ups.machine.ranks import Place
from ups.pipeline.launch import _of_slowest
from ups.pipeline.rank import Job, Line
from ups.pipeline.scoring import InOrder, evaluate_in_ranks
from ups.training import scored_batch
from ups.training.evaluate import evaluate
from ups.training.loop import TrainResult
from ups.training.scored_batch import num_batches, score_batches
from ups.training.step import TrainStep


@pytest.fixture
def score(tiny_config, stage_tasks, saved, tmp_path):
    """`score(num, config)`: in so many processes, to the bytes of `scores.json`; default: tiny."""

    def run(num, config=None):
        config, folder = config or tiny_config(), tmp_path / f"scored-{num}"
        folder.mkdir()
        test, encoders, sources = {}, {}, stage_tasks(config)
        for name, own in config.by_problem().items():
            test[name] = sources[name]["test"]
            with open_file(own, sources[name]["train"][0].path, None) as file:
                encoders[name] = fit_encoder(own, [file])
        if num == 1:
            evaluate(config, saved(config), test, encoders, folder)
        else:
            evaluate_in_ranks(config, num, saved(config), test, encoders, folder)
        return (folder / "scores.json").read_bytes()

    return run


@pytest.mark.parametrize("several", [False, True])
def test_two_ranks_score_what_one_process_does_bit_for_bit(
    score, tiny_config, mixed_config, caplog, several
):
    caplog.set_level("INFO", "ups")
    config = (mixed_config if several else tiny_config)(evaluation__batch_size=2)
    alone = score(1, config)
    assert score(2, config) == alone
    assert "scoring in 2 ranks (fork)" in caplog.text


def test_a_single_batch_is_scored_by_the_process_itself(score, tiny_config, caplog):
    caplog.set_level("INFO", "ups")
    score(3, tiny_config(evaluation__batch_size=6))
    assert "test, 6 trajectories" in caplog.text
    assert "scoring in" not in caplog.text


def test_what_the_runs_process_would_do_at_its_end_is_not_for_its_ranks(
    score, monkeypatch, tmp_path
):
    done = tmp_path / "done at the end"
    at_exit = [*threading._threading_atexits, functools.partial(Path.touch, done)]
    monkeypatch.setattr(threading, "_threading_atexits", at_exit)
    score(2)
    assert not done.exists()


def test_batches_are_added_up_in_their_order_in_whichever_they_come():
    added = []
    in_order = InOrder(SimpleNamespace(add=added.append))
    for number in (2, 0, 3, 1):
        in_order.take(number, f"batch {number}")
    assert added == ["batch 0", "batch 1", "batch 2", "batch 3"]
    assert in_order.num == 4


def test_what_a_rank_has_said_is_there_when_it_is_not_any_more():
    with Listener(family="AF_UNIX", authkey=b"key") as listener:
        if (pid := os.fork()) == 0:
            try:
                job = Job(None, listener.address, b"key", None)
                Line(job, Place(1, 2, 1)).say("batch", torch.arange(3))
            finally:
                os._exit(0)
        with listener.accept() as connection:
            os.waitpid(pid, 0)
            rank, what, value = connection.recv()
    assert (rank, what, value.tolist()) == (1, "batch", [0, 1, 2])


def test_a_batch_has_the_examples_of_its_own_trajectories(tiny_config, stage_all):
    config = tiny_config(evaluation__batch_size=2, evaluation__num_examples=3)
    test, model = stage_all(config)["test"], TrainStep(config).ema
    with open_file(config, test[0].path, None) as file:
        encoder, u = fit_encoder(config, [file]), file.read(0, 6)
    found = {}
    for chosen in range(num_batches(config, test)):
        ((number, batch),) = score_batches(
            config, ["burgers1d"], model, test, encoder, is_chosen=lambda n, c=chosen: n == c
        )
        found[number] = [truth for truth, _ in batch.examples]
    assert [len(of_batch) for of_batch in found.values()] == [2, 1, 0]
    stride = config.training.time_stride
    assert torch.equal(found[1][0], torch.from_numpy(u[2, config.given_frames * stride :: stride]))


def test_a_rank_that_is_killed_as_it_scores_ends_the_scoring_with_its_number_and_signal(
    score, monkeypatch, tmp_path
):
    def die_or_wait(*_):
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)

    monkeypatch.setattr(scored_batch, "_errors", die_or_wait)
    started = time.monotonic()
    with pytest.raises(RankError, match=r"rank 1 \(process \d+\) was ended by SIGKILL; the others"):
        score(2)
    assert time.monotonic() - started < 15  # after 30 s whoever is left would be killed, too
    assert ranks_alive() == []
    assert not list(tmp_path.rglob("scores.json"))


def test_a_signal_stops_ranks_that_score_and_reaches_its_handler(score, monkeypatch):
    def signal_and_wait(*_):
        if os.environ["RANK"] == "1":
            os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(60)

    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: heard.append(number))
    monkeypatch.setattr(scored_batch, "_errors", signal_and_wait)
    try:
        with pytest.raises(Interrupted, match="scoring was stopped"):
            score(2)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]
    assert ranks_alive() == []


def test_the_device_began_when_that_of_the_slowest_rank_did():
    def result(first_epoch, waited_s):
        return TrainResult.model_construct(first_epoch=first_epoch, waited_s=waited_s, num_steps=7)

    slowest = _of_slowest({1: result((2.0, 4.0), 0.0), 0: result((1.0, 4.5), 0.5)})
    assert (slowest.first_epoch, slowest.waited_s, slowest.num_steps) == ((2.0, 4.5), 0.5, 7)
    assert _of_slowest({0: result(None, 0.0)}).first_epoch is None
