"""Bits flipped and bytes cut in every file that is written: found, and never another result.

Whoever reads next comes to what it would have come to, or to an error of the project's own.
"""

import os
import random
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash

from ups.config import load_config
from ups.data.sources import stage
from ups.errors import CacheDamaged, CheckpointError, HistoryError, Interrupted
from ups.files import read_json, write_json
from ups.latents import loader
from ups.latents.build import ensure
from ups.pipeline.local_run import LocalRun
from ups.runs.folder import has_to_build
from ups.runs.index import read_run
from ups.startup.judge.history import History, JudgedBenchmark
from ups.training import checkpoint

SEED, FLIPS, CUTS = 12, 20, 6
BENCHMARK = {"id": "b1", "started_at": 1.5e9, "flow_run_id": "f", "machine_id": "m", "commit": "c"}
BENCHMARK |= {"machine": {"cores": 2}, "versions": {"torch": "2"}, "settings": {"num": 256}}


@dataclass
class Written:
    """What a run, a build that was stopped and a benchmark left behind."""

    config: Any
    sources: dict[str, Any]
    run_dir: Path
    cache: Path
    partial: Path
    history: Path


@pytest.fixture(scope="module")
def written(tmp_path_factory, tiny_data, write_tiny):
    root = tmp_path_factory.mktemp("written")
    folders = {"runs_dir": str(root / "runs"), "training__latent_cache_dir": str(root / "cache")}
    given = {"data__root": str(tiny_data), "data__generate": None, "data__sources": None}
    path = write_tiny(root / "tiny.yaml", **given, **folders, stages__operator__epochs=2)
    config = load_config(str(path)).only_problem()
    LocalRun(config, "mine", None).run(lambda *_: lambda *_: None)
    (run_dir,) = config.runs_dir.glob("*-mine")
    has_to_build(run_dir, "key", "20260101T000000-abcdef")
    sources = {split: stage(config, split, None) for split in ("train", "val")}
    stop = threading.Event()
    with pytest.raises(Interrupted):
        ensure(
            in_cache(config, root / "partial"),
            sources,
            stop=stop,
            progress=lambda done, _: done >= 8 and stop.set(),
        )
    History(root).save(JudgedBenchmark.model_validate(BENCHMARK))
    return Written(config, sources, run_dir, root / "cache", root / "partial", root)


def in_cache(config, directory, preload="ram"):
    training = config.training.model_copy(update={"latent_cache_dir": directory})
    features = config.features.model_copy(update={"preload": preload})
    return config.model_copy(update={"training": training, "features": features})


def damages(data, name):
    """Flips of one bit, and cuts, drawn by the name of the file; and a file of zeros."""
    draw = random.Random(f"{SEED} {name}")
    for bit in draw.sample(range(8 * len(data)), FLIPS):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        yield f"bit {bit}", bytes(flipped)
    for length in (0, len(data) - 1, *draw.sample(range(1, len(data) - 1), CUTS)):
        yield f"cut to {length}", data[:length]
    yield "zeros", bytes(len(data))


def write_unseen(path, data):
    """In place, and the time of its change put back."""
    stat = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def digest(value):
    """Of whatever is made of tensors, containers and plain values."""
    if isinstance(value, torch.Tensor):
        return xxhash.xxh3_64_hexdigest(value.contiguous().view(-1).view(torch.uint8).numpy())
    if isinstance(value, dict):
        return str({key: digest(value[key]) for key in sorted(value)})
    if isinstance(value, list | tuple):
        return str([digest(item) for item in value])
    return repr(value)


def latents_of(written, directory, preload):
    """What the next run trains on."""
    config = in_cache(written.config, directory, preload)
    entries = {"burgers1d": ensure(config, written.sources)}
    latents = loader.load(config, entries, {"burgers1d": written.sources}, device="cpu")
    try:
        splits = [data.batch(torch.arange(len(data))) for data in (latents.train, latents.val)]
        return digest([*splits, latents.encoders["burgers1d"].to_manifest()])
    finally:
        latents.close()


@pytest.mark.parametrize(
    ("of", "pattern", "preload"),
    [
        ("cache", "*/CURRENT", "ram"),
        ("cache", "*/2*/.cache_metadata.json", "ram"),
        ("cache", "*/2*/train_000.safetensors", "ram"),
        ("cache", "*/2*/val_000.safetensors", "disk"),
        ("partial", "*/building-*/.progress.jsonl", "ram"),
        ("partial", "*/building-*/train_000.safetensors", "ram"),
    ],
)
def test_a_damaged_entry_or_partial_build_gives_the_latents_that_it_would_have_given(
    written, tmp_path, of, pattern, preload
):
    whole, expected = getattr(written, of), latents_of(written, written.cache, "ram")
    (path,) = whole.glob(pattern)
    for what, data in damages(path.read_bytes(), path.name):
        shutil.copytree(whole, directory := tmp_path / what)
        write_unseen(directory / path.relative_to(whole), data)
        try:
            found = latents_of(written, directory, preload)
        except CacheDamaged:  # in the middle of a run that reads from disk
            assert preload == "disk", what
            found = latents_of(written, directory, preload)
        assert found == expected, what
        shutil.rmtree(directory)


@pytest.mark.parametrize("name", ["last.pt", "best.pt"])
def test_a_damaged_checkpoint_is_refused(written, tmp_path, name):
    whole, path = written.run_dir / "checkpoints" / name, tmp_path / name
    expected = digest(checkpoint.load(whole))
    refused = 0
    for what, data in damages(whole.read_bytes(), name):
        path.write_bytes(data)
        try:
            assert digest(checkpoint.load(path)) == expected, what
        except CheckpointError:
            refused += 1
    assert refused >= FLIPS


def one_by_one(run_dir):
    """The files of a run's folder as they are read."""
    files = read_run(run_dir)
    epochs_and_summary = [files.epochs, files.metrics] if files.epochs else None
    return {
        "run.json": files.info,
        "breakdown.json": files.breakdown,
        "scores.json": files.scores or None,
        "metrics.jsonl": epochs_and_summary,
    }


@pytest.mark.parametrize("name", ["run.json", "breakdown.json", "scores.json", "metrics.jsonl"])
def test_a_damaged_file_of_a_run_is_left_out_which_is_said(written, tmp_path, caplog, name):
    folder, expected = tmp_path / written.run_dir.name, one_by_one(written.run_dir)
    assert all(expected.values())
    shutil.copytree(written.run_dir, folder)
    for what, data in damages((written.run_dir / name).read_bytes(), name):
        (folder / name).write_bytes(data)
        caplog.clear()
        found = one_by_one(folder)
        assert found in (expected, {**expected, name: None}), what
        assert (f"{name} is left out" in caplog.text) == (found[name] is None), what


def test_a_damaged_stamp_has_the_file_hashed_again(written, tiny_data, tmp_path):
    shutil.copytree(tiny_data, tmp_path, dirs_exist_ok=True)
    data_config = written.config.data.model_copy(update={"root": tmp_path})
    config = written.config.model_copy(update={"data": data_config})
    (expected,) = stage(config, "train", None)
    path = tmp_path / ".burgers1d_train.h5.stamp"
    for what, data in damages(path.read_bytes(), path.name):
        path.write_bytes(data)
        (found,) = stage(config, "train", None)
        assert (found.sha256, found.num_bytes) == (expected.sha256, expected.num_bytes), what


def test_a_damaged_note_of_what_was_overwritten_has_it_built_again(written, tmp_path):
    path = Path(shutil.copy(written.run_dir / "overwritten.json", tmp_path))
    whole = path.read_bytes()
    for what, data in damages(whole, path.name):
        path.write_bytes(data)
        assert has_to_build(tmp_path, "key", "20260101T000000-abcdef"), what


def test_a_damaged_history_is_an_error(written, tmp_path):
    (expected,) = History(written.history).benchmarks()
    path = tmp_path / "history" / "b1.json"
    path.parent.mkdir()
    for what, data in damages((written.history / "history" / path.name).read_bytes(), path.name):
        path.write_bytes(data)
        try:
            assert History(tmp_path).benchmarks() == (expected,), what
        except HistoryError:
            continue


def test_a_damaged_record_of_a_process_or_of_a_setting_is_none(tmp_path):
    path, content = tmp_path / "settings.json", {"host": "127.0.0.1", "port": 4200}
    write_json(path, content)
    assert read_json(path) == content
    for what, data in damages(path.read_bytes(), path.name):
        path.write_bytes(data)
        try:
            assert read_json(path) == content, what
        except ValueError:
            continue
