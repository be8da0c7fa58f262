"""A streaming start: the same operator as without, whatever happens on the way."""

import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import closing

import pytest
import torch

from deployments.layout import PROJECT_DIR
from tests.conftest import TINY_FILE
from tests.live import wait_until
from ups.config import SPLITS, dump_config
from ups.data.objectstore import ObjectStore
from ups.errors import CacheDamaged, ChecksumMismatch
from ups.latents import store
from ups.pipeline.local_run import LocalRun
from ups.progress import progress_shown
from ups.runs.folder import UNVERIFIED
from ups.runs.index import read_run
from ups.training import checkpoint
from ups.training.step import TrainStep


@pytest.fixture
def config_of(tiny_config, bucket_sources, store_env, tmp_path, monkeypatch):
    """`config_of(folder, **overrides)`: a config of the tiny bucket, in a folder of its own."""
    monkeypatch.delenv("PDEBENCH_ROOT", raising=False)

    def make(folder, **overrides):
        place = tmp_path / folder
        places = {
            "runs_dir": str(place / "runs"),
            "training__latent_cache_dir": str(place / "cache"),
            "data__root": str(place / "data"),
        }
        return tiny_config(**{**places, "data__sources": bucket_sources, **overrides})

    return make


@pytest.fixture
def run(config_of):
    """`run(folder, **overrides)`: train in a folder of its own; the run, which may have failed."""

    def make(folder, run_id=None, **overrides):
        run = LocalRun(config_of(folder, **overrides), run_id, None)
        with progress_shown() as show:
            run.run(show)
        return run

    return make


@pytest.fixture
def bare_sources(s3_client, tiny_data):
    """The tiny data set as objects without a manifest."""
    with closing(ObjectStore()) as client:
        for split in SPLITS:
            client.upload(tiny_data / TINY_FILE.format(split), "tiny", f"bare/{split}.h5")
    s3_client.delete_object(Bucket="tiny", Key="bare/manifest.json")
    return {s: [{"key": f"bare/{s}.h5", "bucket": "tiny"}] for s in SPLITS}


def weights_path(run):
    return run.run_dir / "checkpoints" / "last.pt"


def weights(run):
    return checkpoint.load(weights_path(run))


def assert_same(one, other):
    found, expected = weights(one), weights(other)
    for part in ("model", "ema", "optimizer"):
        torch.testing.assert_close(found[part], expected[part], rtol=0, atol=0)


def spans(run, phase):
    return [span for span in run._timeline.spans if span.phase == phase]


def test_the_model_is_built_beside_the_downloads_to_the_same_weights(run, monkeypatch):
    built_by, build = [], TrainStep.__init__

    def note(step, config):
        built_by.append(threading.current_thread().name)
        build(step, config)

    monkeypatch.setattr(TrainStep, "__init__", note)
    beside, later = run("beside"), run("later", features__warm_up=False)
    assert built_by == ["warm up", "MainThread"]
    assert_same(beside, later)
    imported, built = spans(beside, "warm-up")
    (load,), (training,) = spans(beside, "load"), spans(beside, "train")
    assert imported.end <= built.start < load.end
    assert built.end <= training.start
    assert len(spans(later, "warm-up")) == 1


def test_the_trace_of_a_streamed_run_has_phases_threads_chunks_waits_and_arrows(run):
    done = run("traced", features__stream="on")
    events = json.loads((done.run_dir / "trace.json").read_text())["traceEvents"]
    named = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    found = {(named[e["pid"], e["tid"]], e["name"]) for e in events if e["ph"] == "X"}
    assert {(phase, phase) for phase in ("boot", "download", "load", "cache", "evaluate")} <= found
    assert {("first step", "4 first step"), ("encode 0", "encode")} <= found
    main = {name for thread, name in found if thread == "main: training"}
    assert main >= {"step 1", "step 4", "epoch 1", "epoch 3", "validate", "after the first step"}
    assert "step 5" not in main  # of the first epoch alone
    assert "fetch" in {name for thread, name in found if thread.startswith("fetch ")}
    chunks = [e["args"] for e in events if e["name"] == "encode"]
    rows = sorted(row for c in chunks if c["split"] == "train" for row in range(*c["rows"]))
    assert rows == list(range(20))
    arrows = [[e["ph"] for e in events if e.get("id") == n] for n in range(1, len(chunks) + 1)]
    assert sorted(map("".join, arrows)) == ["sf"] * 2 + ["stf"] * (len(chunks) - 2)


def test_a_streamed_run_a_warm_one_and_one_without_streaming_have_the_same_weights(run, caplog):
    caplog.set_level("INFO", "ups")
    streamed = run("streamed", features__stream="on")
    assert "training on what is there" in caplog.text
    bounds = {row.phase: row.bound for row in streamed._break_down().phases}
    assert "not needed" not in bounds["download"]
    warm = run("streamed", features__stream="on")
    plain = run("plain", features__stream="off")
    assert_same(streamed, warm)
    assert_same(streamed, plain)
    assert store.valid_generation(
        streamed.config.training.latent_cache_dir, *[streamed._state.config_hash]
    )


def test_ranks_that_stream_have_the_weights_of_ranks_that_begin_once_all_is_there(
    run, bare_sources, caplog
):
    caplog.set_level("INFO", "ups")
    given = {"training__ranks": 2, "data__sources": bare_sources, "stages__operator__epochs": 2}
    streamed = run("streamed", **given, features__stream="on")
    assert "training on what is there" in caplog.text
    assert "training in 2 ranks (forkserver)" in caplog.text
    assert_same(streamed, run("plain", **given, features__stream="off"))
    (said,) = weights(streamed)["trained_on"].values()
    assert re.fullmatch("[0-9a-f]{64}", said["sources"]["train"][0]["sha256"])
    spans = [row.phase for row in streamed._break_down().phases]
    assert spans.index("ranks") < spans.index("rendezvous") < spans.index("first step")


@pytest.mark.parametrize("preload", ["auto", "disk"])
def test_a_run_whose_latents_are_in_the_cache_fetches_test_alone(run, preload):
    first = run("cached")
    root = first.config.data_root
    shutil.rmtree(root)
    again = run("cached", features__preload=preload)
    assert [path.name for path in root.rglob("*.h5")] == [TINY_FILE.format("test")]
    assert_same(first, again)
    bounds = {row.phase: row.bound for row in again._break_down().phases}
    assert bounds["download"].endswith("; 2 files not needed: latents in the cache")
    assert again._state.cache_reused


@pytest.mark.parametrize(
    "way", [{"features__stream": "off"}, {"features__reuse_cache": False}], ids=str
)
def test_without_a_streaming_start_or_the_cache_all_files_are_fetched_again(run, way):
    root = run("all", stages__operator__epochs=1).config.data_root
    shutil.rmtree(root)
    run("all", stages__operator__epochs=1, **way)
    assert len(list(root.rglob("*.h5"))) == 3


def test_damage_that_shows_at_the_load_has_the_files_fetched_and_the_latents_built_anew(
    run, flip_bit, caplog
):
    first = run("damaged")
    shutil.rmtree(first.config.data_root)
    (latents,) = first.config.training.latent_cache_dir.glob("*/*/train_000.safetensors")
    flip_bit(latents, latents.stat().st_size - 3)
    again = run("damaged", features__preload="ram")
    assert "fetching train and val: the latents have to be built anew" in caplog.text
    assert len(list(first.config.data_root.rglob("*.h5"))) == 3
    assert_same(first, again)


@pytest.mark.parametrize("split", ["train", "val"])
def test_damage_that_training_meets_ends_the_run_without_a_checkpoint_and_the_next_builds_anew(
    run, flip_bit, split
):
    one_epoch = {"stages__operator__epochs": 1}
    first = run("damaged", **one_epoch)
    shutil.rmtree(first.config.data_root)
    (latents,) = first.config.training.latent_cache_dir.glob(f"*/*/{split}_000.safetensors")
    flip_bit(latents, latents.stat().st_size - 3)
    with pytest.raises(CacheDamaged, match="start again, and the entry is built anew"):
        run("damaged", "mine", **one_epoch)
    assert not list(first.config.runs_dir.glob("*-mine/checkpoints/*.pt"))
    assert_same(first, run("damaged", **one_epoch))


@pytest.mark.parametrize(
    ("number", "built_by", "manifest", "num_ranks"),
    [
        (signal.SIGKILL, "mine", "there", 1),
        (signal.SIGTERM, "another", "missing", 1),
        (signal.SIGTERM, "mine", "there", 2),
    ],
)
def test_a_run_that_is_ended_while_data_arrive_goes_on_at_its_step_to_the_same_weights(
    run, config_of, proxy, tmp_path, bare_sources, number, built_by, manifest, num_ranks
):
    """The last bytes of train stall: all of it is trained on, without a verdict."""
    gate, stalled = threading.Event(), []

    def stall(path):
        if "train" in path and len(proxy.ranges) > 3 and proxy.ranges[-1].startswith("bytes=0-"):
            stalled.append(path)
            gate.wait(60)

    proxy.faults.on_range = stall
    one_epoch = {"stages__operator__epochs": 1, "training__ranks": num_ranks}
    if manifest == "missing":
        one_epoch["data__sources"] = bare_sources
    in_order = {**one_epoch, "data__endpoint_url": proxy.url, "features__parallel_downloads": False}
    config = config_of("ended", **in_order)
    path = tmp_path / "tiny.yaml"
    path.write_text(dump_config(config))
    command = [sys.executable, "-m", "deployments.cli.app", "train", path, "--run-id", "mine"]

    def is_saved():
        return list(config.runs_dir.rglob(UNVERIFIED))

    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(command, cwd=PROJECT_DIR, stdout=output, stderr=output)
    try:
        wait_until(lambda: process.poll() is not None or is_saved(), 60)
        assert stalled
        assert process.poll() is None, (tmp_path / "output").read_text()
        process.send_signal(number)
        assert process.wait(10) != 0
    finally:
        process.kill()
        process.wait()
    assert [path.name for path in tmp_path.rglob("*.pt")] == [UNVERIFIED]
    gate.set()
    if built_by == "another":  # which goes on from the bytes and the chunks that are there
        run("ended", built_by, **in_order)
    ended = run("ended", "mine", **in_order)
    assert ended._state.latents.arrival is None or built_by == "mine"
    assert ended._state.result.resumed_from_step > 0
    assert_same(ended, run("plain", **one_epoch, features__stream="off"))
    assert not is_saved()


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_manifest_with_another_digest_fails_the_run_in_the_end_without_a_trace_of_the_data(
    run, config_of, s3_client, tiny_data, proxy, num_ranks
):
    with closing(ObjectStore()) as client:
        for split in SPLITS:
            client.upload(tiny_data / TINY_FILE.format(split), "tiny", f"false/{split}.h5")
    place = {"Bucket": "tiny", "Key": "false/manifest.json"}
    true = s3_client.get_object(**place)["Body"].read().decode()
    digest = json.loads(true)["train.h5"]["sha256"]
    s3_client.put_object(**place, Body=true.replace(digest, 64 * "0").encode())
    sources = {s: [{"key": f"false/{s}.h5", "bucket": "tiny"}] for s in SPLITS}
    config = config_of("false", data__sources=sources)
    folder, seen = config.runs_dir.parent, []

    def stall(path):
        if "train" in path and len(proxy.ranges) > 3 and proxy.ranges[-1].startswith("bytes=0-"):
            wait_until(lambda: list(folder.rglob(UNVERIFIED)), 30)
            seen.append(path)

    proxy.faults.on_range = stall
    with pytest.raises(ChecksumMismatch, match="expected 000000"):
        run(
            "false",
            "mine",
            data__sources=sources,
            data__endpoint_url=proxy.url,
            features__stream="on",
            features__parallel_downloads=False,
            training__ranks=num_ranks,
        )
    assert seen, "it was trained on before the verdict"
    assert not list(folder.rglob("*.pt"))
    assert not list(folder.rglob("building-*"))
    assert {path.name for path in folder.rglob("*train.h5*")} <= {".train.h5.lock"}
    failed = read_run(next(config.runs_dir.glob("*-mine")))
    assert failed.summary().state == "failed"


def test_a_changed_config_is_trained_on_while_its_files_are_encoded_and_says_what_changed(run):
    run("changed")
    again = run("changed", latent__dim=12)
    state = again._state
    assert state.latents.arrival is not None
    assert [line for entry in state.entries.values() for line in entry.changed] == [
        "latent.dim 12, the cached entry has 16"
    ]
    state.result = state.result.model_copy(update={"waited_s": 2.0})
    breakdown = again._break_down()
    began_s = state.result.first_epoch[0] - breakdown.triggered_at
    assert (breakdown.idle_s, breakdown.waited_s) == (pytest.approx(began_s + 2.0), 2.0)
    cut_short = {"steps_per_epoch": state.result.num_steps + 1}
    state.result = state.result.model_copy(update=cut_short)
    assert again._break_down().idle_s is None


def test_without_a_manifest_or_kept_files_the_weights_are_the_same_and_the_key_is(
    run, config_of, bare_sources, proxy, caplog
):
    caplog.set_level("INFO", "ups")
    given = {"data__sources": bare_sources, "stages__operator__epochs": 1}
    plain = run("plain", **given, features__stream="off")
    passing = run("passing", **given, features__stream="on", data__keep_sources=False)
    assert_same(passing, plain)
    assert passing._state.latents.arrival is not None
    assert passing._state.config_hash == plain._state.config_hash
    found = [path.name for path in passing.config.data_root.rglob("*") if path.is_file()]
    assert {name.rpartition(".")[2] for name in found} == {"lock"}

    late = threading.Event()  # set by nobody: val comes after training is to go on
    proxy.faults.on_range = lambda path: "val" in path and len(proxy.ranges) > 3 and late.wait(1)
    two = {**given, "stages__operator__epochs": 2, "features__stream": "on"}
    two["data__endpoint_url"] = proxy.url
    again = LocalRun(config_of("again", **two), None, weights_path(plain))
    with progress_shown() as show:
        again.run(show)
    assert "going on once all data are hashed" in caplog.text
    assert again._state.result.resumed_from_step > 0
    assert again._state.latents.arrival is not None
