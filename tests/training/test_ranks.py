"""Several processes train as one would; they meet, stop and fail together."""

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack

import pytest
import torch

from tests.machines import ranks_alive, start_in, two_namespaces
from ups.background import Background
from ups.config import load_config
from ups.errors import ConfigError, Interrupted, RankError
from ups.machine import ranks
from ups.machine.ranks import Place, local_ranks, take_gpu, why_ranks_wait
from ups.pipeline.launch import Ranked, train_in_ranks
from ups.pipeline.phases import build_cache
from ups.runs.metrics import VAL
from ups.training import checkpoint
from ups.training.loop import train
from ups.training.ranked_step import _Answers
from ups.training.ranks import Ranks
from ups.validate.training import validate_ranks

HALVES = {"training__batch_size": 3, "training__accumulation_steps": 2}


@pytest.fixture
def in_ranks(prepared, stage_all):
    """`in_ranks(folder, num, **overrides)`: train in so many, and what that came to."""

    def run(folder, num=2, on_first_step=None, on_first_epoch=None, stop=None, **overrides):
        config, latents, run_dir = prepared(folder, **{"training__ranks": num, **overrides})
        times = []
        sources = {"burgers1d": stage_all(config)}
        entries = {"burgers1d": build_cache(config, sources["burgers1d"])}
        ranked = Ranked(num, sources, entries, lambda *at: times.append(at))
        result = train_in_ranks(
            config,
            ranked,
            latents,
            run_dir,
            stop=stop,
            on_first_step=on_first_step or (lambda at: times.append(at)),
            on_first_epoch=on_first_epoch or (lambda result: None),
            progress=lambda last, total: None,
        )
        return run_dir, result, times

    return run


def weights_of(run_dir):
    """All of the last checkpoint's model and average, in a row."""
    record = checkpoint.load(run_dir / "checkpoints/last.pt")
    return torch.cat([w.flatten() for part in ("model", "ema") for w in record[part].values()])


def test_two_ranks_are_one_process_with_two_accumulations_and_take_over_from_each_other(
    prepared, in_ranks, stop_after, assert_same_weights
):
    config, latents, whole = prepared("whole", **HALVES)
    alone = train(config, latents, whole)
    run_dir, result, ((started_at, joined_at), first_step_at) = in_ranks("ranks")
    assert_same_weights(whole, run_dir)
    assert result.best_val_nrmse == pytest.approx(alone.best_val_nrmse, rel=1e-5)
    assert started_at < joined_at < first_step_at == result.first_step_at

    config, latents, mixed = prepared("mixed", **HALVES)
    with pytest.raises(Interrupted):  # in the middle of the first epoch
        train(config, latents, mixed, stop=stop_after(latents.train, 4))
    stop = threading.Event()
    with pytest.raises(Interrupted):
        in_ranks("mixed", stop=stop, on_first_epoch=lambda _: stop.set())
    at_step = checkpoint.load(mixed / "checkpoints/last.pt")["position"]["step"]
    assert 4 <= at_step <= alone.num_steps
    config, latents, mixed = prepared("mixed", **HALVES)
    assert train(config, latents, mixed).resumed_from_step == at_step
    assert_same_weights(whole, mixed)


def test_ranks_that_hold_half_of_the_weights_each_go_on_from_one_process_and_it_from_them(
    prepared, in_ranks, stop_after, caplog
):
    clipped = {"training__grad_clip": 0.6}  # some of the steps, by the norm over all ranks
    config, latents, whole = prepared("whole", **HALVES, **clipped)
    assert len(latents.train) % 6 == 2, "of the last batch one rank has nothing"
    alone = train(config, latents, whole)
    config, latents, mixed = prepared("mixed", **HALVES, **clipped)
    with pytest.raises(Interrupted):  # in the middle of the first epoch
        train(config, latents, mixed, stop=stop_after(latents.train, 2))
    stop = threading.Event()
    caplog.set_level(logging.INFO)
    with pytest.raises(Interrupted):
        in_ranks(
            "mixed", stop=stop, on_first_epoch=lambda _: stop.set(), training__shard=True, **clipped
        )
    half, all_of_it = re.search(r"2 ranks holds (\S+) of (\S+) MB of weights", caplog.text).groups()
    assert float(half) == pytest.approx(float(all_of_it) / 2, rel=0.1)
    assert checkpoint.load(mixed / "checkpoints/last.pt")["position"]["step"] > 2
    config, latents, mixed = prepared("mixed", **HALVES, **clipped)
    result = train(config, latents, mixed)
    assert result.num_steps == alone.num_steps
    of_epochs = [
        [row[VAL] for row in checkpoint.load(d / "checkpoints/last.pt")["position"]["history"]]
        for d in (whole, mixed)
    ]
    assert of_epochs[0] == pytest.approx(of_epochs[1], rel=1e-5), "one of them was scored in parts"
    first, second = (weights_of(run_dir) for run_dir in (whole, mixed))
    assert (first - second).norm() < 1e-4 * first.norm()
    assert result.best_val_nrmse == pytest.approx(alone.best_val_nrmse, rel=1e-5)


def test_a_rank_that_is_killed_ends_the_training_with_its_number_and_signal(in_ranks):
    killed_at = []

    def kill(_at):
        ranks_alive()[-1].kill()
        killed_at.append(time.monotonic())

    message = r"rank [01] \(process \d+\) was ended by SIGKILL; .* resumes from the last checkpoint"
    with pytest.raises(RankError, match=message):
        in_ranks("killed", on_first_step=kill, stages__operator__epochs=10_000)
    assert time.monotonic() - killed_at[0] < 5
    assert ranks_alive() == []


def test_a_signal_stops_all_ranks_after_the_same_step_and_reaches_its_handler(in_ranks, tmp_path):
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: heard.append(number))
    try:
        with pytest.raises(Interrupted):
            in_ranks(
                "stopped",
                on_first_step=lambda _: os.kill(os.getpid(), signal.SIGTERM),
                stages__operator__epochs=10_000,
            )
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]
    assert checkpoint.load(tmp_path / "stopped/checkpoints/last.pt")["position"]["step"] > 0
    assert ranks_alive() == []


def test_what_a_rank_fails_with_is_what_the_training_fails_with(in_ranks, tmp_path):
    (tmp_path / "failing").mkdir()
    (tmp_path / "failing/checkpoints").touch()
    with pytest.raises(OSError, match="checkpoints"):
        in_ranks("failing")
    assert ranks_alive() == []


def test_a_wish_to_stop_is_read_as_many_steps_later_as_the_device_may_be_behind():
    answers, heard = _Answers(3), []
    for number in range(6):
        heard.append(answers.oldest())
        answers.ask(torch.tensor(float(number)))
    assert heard == [0, 0, 0, 0, 1, 2]


@pytest.fixture
def free_port(monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    return port


@pytest.mark.usefixtures("free_port")
def test_ranks_that_do_not_go_together_all_say_so_in_a_line(tiny_config):
    def join(rank, **overrides):
        config = tiny_config(training__rendezvous_s=5, **overrides)
        return Background(lambda: Ranks.join(config, Place(rank, 2, rank)), "a rank").error()

    other = Background(lambda: join(1, training__seed=7), "the other rank")
    found = [join(0), other.result()]
    for error in found:
        assert isinstance(error, RankError)
        assert "rank 1 on " in str(error)
        assert "start all ranks with the same config" in str(error)
        assert "\n" not in str(error)


@pytest.mark.usefixtures("free_port")
def test_a_rank_that_finds_no_master_and_a_master_that_finds_no_rank_say_what_to_do(tiny_config):
    config = tiny_config(training__rendezvous_s=0.5)
    with pytest.raises(RankError, match="rank 1 could not reach rank 0 within 0.5 s at MASTER_A"):
        Ranks.join(config, Place(1, 2, 1))
    with pytest.raises(RankError, match="of 3 ranks 1, 2 did not come within 0.5 s: see what they"):
        Ranks.join(config, Place(0, 3, 0))
    with pytest.raises(RankError, match="found 7 ranks, expected no more than the 6 items of a"):
        Ranks.join(config, Place(0, 7, 0))


MEET = """
from ups.config import load_config
from ups.machine.ranks import Place
from ups.training.ranks import Ranks
ranks = Ranks.join(load_config("smoke"), Place.of_environment())
ranks.leave()
print("met")
"""


def test_ranks_of_two_network_namespaces_meet_through_the_interface_between_them():
    with ExitStack() as made:
        try:
            names = made.enter_context(two_namespaces())
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"network namespaces cannot be made here: {error}")
        meeting = [start_in(n, r, sys.executable, "-c", MEET) for r, n in enumerate(names)]
        said = [process.communicate(timeout=60)[0].splitlines()[-1] for process in meeting]
    assert said == ["met", "met"]


def test_more_ranks_than_a_batch_has_items_or_the_machine_gpus_are_refused(
    tiny_config, monkeypatch, tmp_path
):
    with pytest.raises(ConfigError, match="ranks: found 7, expected no more than the 6 trajec"):
        tiny_config(training__ranks=7)
    with pytest.raises(ConfigError, match="stream: found on, expected auto or off with training"):
        tiny_config(training__shard=True, features__stream="on")
    with pytest.raises(ConfigError, match="compile: found inductor, expected off with training.sh"):
        tiny_config(training__shard=True, training__compile="inductor")
    with pytest.raises(ConfigError, match="shard: found true, expected false with operator.kind f"):
        load_config("smoke_fno", {"training.shard": True})
    monkeypatch.setattr(ranks, "DEVICES", tmp_path)
    for number in range(2):
        (tmp_path / f"nvidia{number}").touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (check,) = validate_ranks(tiny_config(training__ranks=3))
    assert check.status == "fault"
    assert "found 3, and this machine has 2 GPUs; expected one for each rank" in check.text
    (check,) = validate_ranks(tiny_config(training__ranks=2, training__shard=True))
    assert check.status == "ok"
    (check,) = validate_ranks(tiny_config(training__shard=True))
    assert (check.name, check.status) == ("shard", "warn")
    assert local_ranks(tiny_config(training__ranks="auto")) == 2
    assert local_ranks(tiny_config(training__ranks="auto", training__batch_size=1)) == 1
    assert local_ranks(tiny_config(training__ranks="auto", training__device="cpu")) == 1
    with pytest.raises(RankError, match="rank 2 of this machine, .* and there are 2: start fewer"):
        take_gpu(2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,3")
    take_gpu(1)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
    take_gpu(1)  # chosen already
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"


def test_the_environment_says_which_rank_it_is_or_what_is_wrong_with_it(monkeypatch, tiny_config):
    given = "RANK=3 WORLD_SIZE=4 LOCAL_RANK=1 MASTER_ADDR=a MASTER_PORT=1"
    for assignment in given.split():
        monkeypatch.setenv(*assignment.split("="))
    assert Place.of_environment() == Place(3, 4, 1)
    assert "a launcher has started begin once all" in why_ranks_wait(tiny_config())
    for name, value, message in (
        ("RANK", "4", "found RANK=4, WORLD_SIZE=4"),
        ("LOCAL_RANK", "one", "found LOCAL_RANK=one, expected whole numbers"),
        ("MASTER_ADDR", "", "WORLD_SIZE is 4, and MASTER_ADDR not set: set all"),
    ):
        with monkeypatch.context() as changed:
            changed.setenv(name, value)
            with pytest.raises(RankError, match=message):
                Place.of_environment()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert Place.of_environment() is None
    assert why_ranks_wait(tiny_config(training__ranks=2)) == ""
    assert "training.shard" in why_ranks_wait(tiny_config(training__ranks=2, training__shard=True))


def test_who_trains_alone_imports_nothing_of_it():
    code = (
        "import sys, ups.pipeline.local_run, ups.training.loop; print([n for n in sys.modules "
        "if n in ('ups.training.ranks', 'ups.pipeline.launch', 'torch.distributed.launcher')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
