"""Runs that share their latents: what one has built, another pulls while it trains."""

import json
import logging
import threading
from contextlib import closing
from types import SimpleNamespace

import pytest
import torch

from tests.conftest import TINY_FILE
from tests.proxy import Proxy
from ups.config import load_config
from ups.latents import pull
from ups.latents.chunks import ChunkEncoder
from ups.latents.remote import Remote
from ups.latents.sharing import Sharing
from ups.pipeline.local_run import LocalRun
from ups.progress import progress_shown
from ups.training import checkpoint


@pytest.fixture(scope="module")
def shared(s3, bucket_sources, proxy_handler, write_tiny, tmp_path_factory):
    """`shared.run(folder)`: train on a machine of its own; `shared.built`: what one had to build.

    That one may not write to the bucket. What it has built is pushed later.
    """
    proxy = proxy_handler.proxy = Proxy(proxy_handler.proxy.url)
    root = tmp_path_factory.mktemp("shared")

    def run(folder, **overrides):
        place = root / folder
        place.mkdir()
        given = {
            "runs_dir": str(place / "runs"),
            "training__latent_cache_dir": str(place / "cache"),
            "data__root": str(place / "data"),
            "data__sources": bucket_sources,
            "data__generate": None,
            "data__endpoint_url": proxy.url,
            "cache__remote": f"s3://tiny/{root.name}",
        }
        path = write_tiny(place / "tiny.yaml", **{**given, **overrides})
        run = LocalRun(load_config(str(path)), None, None)
        with progress_shown() as show:
            run.run(show)
        return run

    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    with s3.used(), pytest.MonkeyPatch.context() as patch:
        patch.delenv("PDEBENCH_ROOT", raising=False)
        proxy.faults.read_only = True
        logging.getLogger("ups.latents").addHandler(handler)
        built = run("built")
        logging.getLogger("ups.latents").removeHandler(handler)
        proxy.faults.read_only = False
        asked = [line for line in proxy.asked if "/latents/" in line]
        with closing(Remote.opened(built.config)) as remote:
            assert remote.folder.listed() == {}
            keys = dict(built._state.config_hashes)
            Sharing(built.config).push(None, keys, threading.Event())
            key = keys["burgers1d"]
            of_built = {"built": built, "asked": asked, "said": said, "key": key}
            yield SimpleNamespace(run=run, proxy=proxy, remote=remote, **of_built)


def assert_same(one, other):
    one, other = (checkpoint.load(run.run_dir / "checkpoints" / "last.pt") for run in (one, other))
    for part in ("model", "ema", "optimizer"):
        torch.testing.assert_close(one[part], other[part], rtol=0, atol=0)


def bounds(run):
    return {row.phase: row.bound for row in run._break_down().phases}


def test_keys_that_may_only_read_skip_the_push_with_one_line(shared):
    (said,) = shared.said
    assert f"latents {shared.key} are not pushed: AccessDenied (HTTP 403)" in said
    assert shared.built._state.scores is not None


def test_a_miss_costs_one_request_and_so_does_the_look_before_a_push(shared):
    pointer = f"GET /{shared.remote.uri.removeprefix('s3://')}{shared.key}/CURRENT"
    assert [line for line in shared.asked if line.startswith("GET")] == [pointer, pointer]


def test_a_run_pulls_what_another_has_built_to_the_same_weights_and_asks_for_no_field_of_it(shared):
    shared.proxy.asked.clear()
    pulled = shared.run("pulled")
    assert_same(shared.built, pulled)
    assert pulled._state.cache_reused
    uri = f"s3://tiny/{shared.remote.uri.split('/')[3]}/latents/{shared.key}"
    assert bounds(pulled)["cache"].startswith(f"pulled from {uri}/")
    asked = shared.proxy.asked
    latents, test = ([i for i, a in enumerate(asked) if of in a] for of in ("/latents/", "test.h5"))
    assert not [a for a in asked if TINY_FILE.format("train") in a or "_val.h5" in a]
    assert max(latents) < min(test)  # what is scored leaves the line to what is trained on
    assert not [a for a in asked if a.startswith("PUT")]
    events = json.loads((pulled.run_dir / "trace.json").read_text())["traceEvents"]
    chunks = [e["args"] for e in events if e["name"] == "pull"]
    rows = sorted(row for c in chunks if c["split"] == "train" for row in range(*c["rows"]))
    assert rows == list(range(20))
    arrows = ["".join(e["ph"] for e in events if e.get("id") == number) for number in (1, 2)]
    assert sorted(arrows) == ["sf", "stf"]  # fetch, pull, and of train the step that takes it


def test_ranks_train_on_what_is_pulled_as_it_comes(shared, caplog):
    caplog.set_level("INFO", "ups")
    ranked = shared.run("ranks", training__ranks=2)
    assert "training in 2 ranks (forkserver)" in caplog.text
    assert ranked._state.latents.arrival is not None
    assert bounds(ranked)["cache"].startswith("pulled from ")
    alone = shared.built._state.result.best_val_nrmse
    assert ranked._state.result.best_val_nrmse == pytest.approx(alone, rel=1e-3)


def test_latents_that_are_read_from_the_disk_are_pulled_whole_before(shared, caplog):
    caplog.set_level("INFO", "ups")
    on_disk = shared.run("disk", features__preload="disk")
    assert_same(shared.built, on_disk)
    assert on_disk._state.latents.tier == "disk"
    assert bounds(on_disk)["cache"].startswith("pulled from ")
    assert "is a miss" not in caplog.text


def test_latents_that_turn_out_to_be_damaged_are_built_here_while_training_goes_on(
    shared, monkeypatch, caplog
):
    before = shared.remote.generation(shared.key)
    name = f"{shared.key}/{before}/train_000.safetensors"
    content = bytearray(shared.remote.folder.get(name))
    content[-1] ^= 1
    shared.remote.folder.put(name, bytes(content))
    encode, encoded = ChunkEncoder.encode, []

    def noted(self, source, first, end):
        encoded.append(end - first)
        return encode(self, source, first, end)

    monkeypatch.setattr(ChunkEncoder, "encode", noted)
    monkeypatch.setattr(pull, "PART_BYTES", 1)  # a request for each chunk
    monkeypatch.setattr(pull, "num_cores", lambda: 1)
    damaged = shared.run("damaged")
    assert_same(shared.built, damaged)
    assert 0 < sum(encoded) < 25  # the others were pulled
    (said,) = [line.message for line in caplog.records if line.levelno >= logging.WARNING]
    assert "is a miss, the latents are built here: " in said
    assert "chunk 4 has checksum" in said
    assert damaged._state.cache_reused is False
    assert "not needed" not in bounds(damaged)["download"]
    mended = shared.remote.find(shared.key).generation  # for whoever comes next
    assert before != mended == damaged._state.entries["burgers1d"].generation
