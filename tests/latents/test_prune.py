"""Removing entries: the oldest first, and never what another process reads or builds."""

import json
import logging
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from ups.latents import latent_file, loader, store
from ups.latents.build import ensure
from ups.latents.entries import Entry, entries
from ups.latents.prune import plan_prune, remove

DAY = 86400
JOB = """
import json, sys, threading
import torch, xxhash
from ups.config import parse_config
from ups.data.sources import stage
from ups.errors import Interrupted
from ups.latents import loader
from ups.latents.build import CacheEntry, ensure

def pause(word):
    print(word, flush=True)
    sys.stdin.readline()

def read(config, entry):
    real, calls = loader.read_exactly, []
    def read_exactly(*args):
        calls.append(args)
        if len(calls) == 3:
            pause("loading")
        real(*args)
    loader.read_exactly = read_exactly
    latents = loader.load(config, {"burgers1d": entry}, {}, device="cpu")
    loader.read_exactly = real
    if config.features.preload != "ram":
        pause("open")
    digest = xxhash.xxh3_64()
    for split in (latents.train, latents.val):
        for index in range(len(split)):
            digest.update(split.batch(torch.tensor([index])).numpy().tobytes())
    pause(digest.hexdigest())
    latents.close()
    print("closed", flush=True)

def build(config):
    stop = threading.Event()
    def progress(done, total):
        if done >= 8 and not stop.is_set():
            pause("building")
            stop.set()
    sources = {split: stage(config, split, None) for split in ("train", "val")}
    try:
        ensure(config, sources, stop=stop, progress=progress)
    except Interrupted:
        print("stopped", flush=True)

for line in sys.stdin:
    order = json.loads(line)
    config = parse_config(order["config"]).only_problem()
    if order["entry"] is None:
        build(config)
    else:
        read(config, CacheEntry.model_validate(order["entry"]))
"""


class Job:
    """A process of its own, which loads or builds an entry and pauses while it holds it."""

    def __init__(self):
        command = [sys.executable, "-c", JOB]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, config, entry=None):
        """What it says when it holds the entry; without one it builds."""
        record = entry.model_dump(mode="json") if entry else None
        return self.go_on(json.dumps({"config": config.model_dump(mode="json"), "entry": record}))

    def go_on(self, line=""):
        """What it says at its next pause."""
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def close(self):
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module")
def job():
    job = Job()
    yield job
    job.close()


def prune(cache_dir, **limits):
    return [r.entry for r in plan_prune(entries(cache_dir), **limits) if remove(r.entry)]


def digest_of(latents):
    digest = xxhash.xxh3_64()
    for split in (latents.train, latents.val):
        digest.update(split.batch(torch.arange(len(split))).numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize(
    ("preload", "word"), [("ram", "loading"), ("auto", "open"), ("disk", "open")]
)
def test_a_prune_under_a_running_training_removes_nothing_it_reads(
    tiny_config, stage_all, job, preload, word
):
    config = tiny_config(features__preload=preload, training__num_workers=1)
    cache_dir = config.training.latent_cache_dir
    built = ensure(config, stage_all(config))
    latents = loader.load(config, {"burgers1d": built}, {}, device="cpu")
    expected = digest_of(latents)
    latents.close()
    seen_before = entries(cache_dir)
    paths = sorted(seen_before[0].directory.rglob("*"))

    assert job.start(config, built) == word
    assert plan_prune(seen_before, max_bytes=0)[0].entry == seen_before[0]
    assert not remove(seen_before[0])  # as a prune does that looked before the training began
    assert prune(cache_dir, max_bytes=0, older_than_s=0) == []
    assert entries(cache_dir)[0].in_use
    assert job.go_on() == expected
    assert sorted(seen_before[0].directory.rglob("*")) == paths
    assert job.go_on() == "closed"
    assert [e.generation for e in prune(cache_dir, max_bytes=0)] == [built.generation]
    assert entries(cache_dir) == []


def test_a_build_that_goes_on_is_not_swept_and_one_that_was_cut_short_is(tiny_config, job):
    config = tiny_config(features__parallel_encode=False)
    cache_dir = config.training.latent_cache_dir
    assert job.start(config) == "building"
    (entry,) = entries(cache_dir)
    assert (entry.state, entry.in_use, entry.current) == ("partial", True, False)
    assert entry.summary.endswith("float16, 25 trajectories of 2 sources, 8 of them encoded")
    assert prune(cache_dir, max_bytes=0) == []
    assert not remove(entry.model_copy(update={"in_use": False}))
    assert job.go_on() == "stopped"
    (entry,) = entries(cache_dir)
    assert not entry.in_use
    assert prune(cache_dir) == [entry]
    assert list(cache_dir.iterdir()) == []


def test_a_removed_entry_leaves_nothing_and_is_built_again(build, stage_all):
    config, entry = build()
    cache_dir = config.training.latent_cache_dir
    (entry.directory.parent / ".CURRENT.1-2").touch()  # of a writer that was killed
    assert remove(entry)
    assert list(cache_dir.iterdir()) == []
    assert not remove(entry)
    assert not store.check_cache_valid(cache_dir, entry.config_hash)
    assert not ensure(config, stage_all(config)).reused
    assert ensure(config, stage_all(config)).reused


def test_what_no_run_can_read_is_swept_and_what_it_reads_stays(build, stage_all, flip_bit):
    config, first = build()
    cache_dir = config.training.latent_cache_dir
    hold = store.InUse(first.directory)
    second = ensure(config, stage_all(config), overwrite=True)
    train = cache_dir / second.config_hash / second.generation / "train_000.safetensors"
    flip_bit(train, latent_file.DATA_ALIGNMENT)
    aside = store.quarantine(cache_dir, second.config_hash)
    third = ensure(config, stage_all(config), overwrite=True)
    states = {e.generation: (e.state, e.in_use) for e in entries(cache_dir)}
    assert states == {
        first.generation: ("orphaned", True),
        second.generation: ("damaged", False),
        third.generation: ("complete", False),
    }
    assert [e.directory for e in prune(cache_dir)] == [aside]
    hold.close()
    assert [e.generation for e in prune(cache_dir)] == [first.generation]
    assert ensure(config, stage_all(config)).generation == third.generation


def test_the_least_recently_used_go_until_the_rest_fits(build, unused_for):
    configs = [build(latent__dim=dim) for dim in (4, 8, 12)]
    for days, (_, entry) in zip((1, 3, 2), configs, strict=True):
        unused_for(entry, days * DAY)
    cache_dir = configs[0][0].training.latent_cache_dir
    a, b, c = (entry.config_hash for _, entry in configs)
    sizes = {entry.config_hash: entry.num_bytes for _, entry in configs}
    assert [e.config_hash for e in entries(cache_dir)] == [a, c, b]

    def planned(**limits):
        return [r.entry.config_hash for r in plan_prune(entries(cache_dir), **limits)]

    assert planned(max_bytes=sum(sizes.values())) == []
    assert planned(max_bytes=sizes[a] + sizes[c]) == [b]
    assert planned(max_bytes=sizes[a] + sizes[c] - 1) == [b, c]
    assert planned(older_than_s=2.5 * DAY) == [b]
    assert planned(max_bytes=0, keep={configs[1][1].generation}) == [c, a]


def entry_of(index, state, num_bytes, age_s, in_use):
    now = time.time()
    return Entry(
        config_hash=f"{index:012x}",
        generation=str(index),
        directory=Path(f"/cache/{index:012x}/{index}"),
        state=state,
        current=state == "complete",
        summary="",
        num_bytes=num_bytes,
        generated_at=now - age_s,
        last_used_at=now - age_s,
        in_use=in_use,
    )


STATES = st.sampled_from(["complete", "partial", "damaged", "orphaned"])
SEEN = st.lists(st.tuples(STATES, st.integers(0, 100), st.integers(0, 9), st.booleans()))


@given(SEEN, st.integers(0, 400), st.booleans())
def test_a_plan_takes_the_oldest_no_more_than_needed_and_nothing_in_use(seen, max_bytes, sweep):
    found = [entry_of(i, *fields) for i, fields in enumerate(seen)]
    going = [r.entry for r in plan_prune(found, max_bytes, sweep=sweep, keep={"0"})]
    assert not any(e.in_use or e.generation == "0" for e in going)
    free = [e for e in found if not e.in_use and e.generation != "0"]
    stay = [e for e in free if e not in going]
    left = sum(e.num_bytes for e in found) - sum(e.num_bytes for e in going)
    assert left <= max_bytes or not stay
    complete = [e for e in going if e.state == "complete"]
    if complete:
        assert left + complete[-1].num_bytes > max_bytes
        assert all(e.state == "complete" for e in stay)
        assert all(e.last_used_at >= complete[-1].last_used_at for e in stay)
    if sweep:
        assert all(e.state == "complete" for e in stay)


def test_a_build_over_the_budget_removes_older_entries_and_never_the_new_one(
    build, unused_for, caplog
):
    (_, first), (_, second) = build(latent__dim=4), build(latent__dim=8)
    unused_for(first, 2 * DAY)
    unused_for(second, DAY)
    budget = (first.num_bytes + second.num_bytes + 20_000) / 1e9
    with caplog.at_level(logging.INFO, "ups"):
        config, third = build(latent__dim=2, training__latent_cache_max_gb=budget)
    cache_dir = config.training.latent_cache_dir
    assert {e.config_hash for e in entries(cache_dir)} == {second.config_hash, third.config_hash}
    line = next(r for r in caplog.messages if "latent_cache_max_gb" in r)
    assert f"removed {first.config_hash} (complete," in line
    assert "not used for 2 d" in line

    hold = store.InUse(second.directory)
    caplog.clear()
    _, fourth = build(latent__dim=16, training__latent_cache_max_gb=1e-6)
    kept = {e.config_hash for e in entries(cache_dir)}
    assert kept == {second.config_hash, fourth.config_hash}
    assert "stay, which are in use or just built" in caplog.text
    hold.close()


def test_a_budget_that_cannot_be_kept_does_not_fail_the_build(build, monkeypatch, caplog):
    _, first = build(latent__dim=4)
    monkeypatch.setattr(store, "remove_unused", Mock(side_effect=PermissionError("made up")))
    _, second = build(training__latent_cache_max_gb=1e-6)
    assert second.state == "complete"
    assert f"{first.directory} cannot be removed: made up" in caplog.text
