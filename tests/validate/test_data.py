"""Objects in a real store and files on the disk: what is wrong with them, and nothing fetched."""

import json
import re
import shutil
import socket
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from ups.config import SPLITS
from ups.validate.data import validate_data
from ups.validate.run import check_head
from ups.validate.sources import select

GENERATE = {"nu": 0.01, "num_trajectories": {"train": 20, "val": 5, "test": 6}}


def by_name(checks):
    return {check.name: check for check in checks}


def texts(checks, status="fault"):
    return {check.name: check.text for check in checks if check.status == status}


def one(sources, split):
    """The only source of a split."""
    (found,) = select(sources, [split])
    return found


@pytest.fixture
def local(tiny_data, tmp_path, tiny_config):
    """`local(change)`: the tiny files, where `change` does something to the train file."""

    def make(change):
        root = tmp_path / "local"
        shutil.copytree(tiny_data, root, dirs_exist_ok=True)
        change(root / "burgers1d_train.h5")
        return tiny_config(data__root=str(root))

    return make


def rewrite(path, tensor):
    with h5py.File(path, "r+") as file:
        del file["tensor"], file["t-coordinate"]
        file["tensor"] = tensor
        file.attrs["dt"] = 0.01


def test_objects_are_found_with_size_and_sha256_and_not_fetched(in_store, tmp_path, tiny_data):
    checks, sources = validate_data(in_store())
    assert texts(checks) == {}
    train, size = by_name(checks)["train object"], (tiny_data / "burgers1d_train.h5").stat().st_size
    assert (train.status, train.figures["num_bytes"]) == ("ok", size)
    assert f"SHA-256 {train.figures['sha256'][:12]}… by its manifest" in train.text
    assert one(sources, "train").fetch_bytes == size
    assert not (tmp_path / "staged").exists()


def test_what_is_staged_is_read_and_fetched_again_only_where_it_is_of_another_version(
    in_store, stage_from_store, tiny_data
):
    config = in_store()
    staged = stage_from_store(config)["val"][0]
    checks, sources = validate_data(config)
    assert {check.status for check in checks} == {"ok"}
    file = by_name(checks)["val file"]
    assert file.figures["shape"] == (5, 41, 256)
    assert "ν 0.02, dt 0.01; 5 sampled, all finite" in file.text
    assert sum(known.fetch_bytes for known in sources) == 0
    shutil.copy(tiny_data / "burgers1d_test.h5", staged.path)
    checks, sources = validate_data(config)
    assert by_name(checks)["val file"].status == "skip"
    assert one(sources, "val").fetch_bytes == staged.num_bytes


def test_missing_objects_are_faults_and_say_what_is_there(in_store, bucket):
    sources = {
        "train": [{"key": "burgers1d/nowhere.h5", "bucket": bucket}],
        "val": [{"key": "x.h5", "bucket": "no-such-bucket"}],
        "test": [{"key": "burgers1d/burgers1d_test.h5", "bucket": bucket}],
    }
    checks, _ = validate_data(in_store(data__sources=sources))
    faults = texts(checks)
    assert faults.keys() == {"train object", "val object"}
    assert "no such key" in faults["train object"]
    assert "burgers1d/burgers1d_test.h5" in faults["train object"]
    assert "no such bucket" in faults["val object"]


def test_a_missing_object_that_is_generated_is_no_fault_and_several_are_one_before_ups_run(
    in_store,
):
    sources = {s: [{"key": f"made/{s}.h5", "bucket": "made"}] for s in SPLITS}
    checks, found = validate_data(in_store(data__sources=sources, data__generate=GENERATE))
    assert texts(checks) == {}
    text = by_name(checks)["train object"].text
    assert "is not there yet: `ups run` generates it, 20 trajectories, 4.12 MB" in text
    assert one(found, "train").fetch_bytes == 20 * 201 * 256 * 4
    twice = {split: objects * 2 for split, objects in sources.items()}
    checks, _ = validate_data(in_store(data__sources=twice, data__generate=GENERATE))
    assert texts(checks)["val"].startswith("data.sources.val: found 2 objects, expected 1")


def test_an_object_without_a_digest_is_a_warning_and_one_of_another_size_a_fault(
    in_store, s3_client, bucket, tiny_data
):
    s3_client.upload_file(str(tiny_data / "burgers1d_val.h5"), bucket, "bare/val.h5")
    body = b'{"short.h5": {"sha256": "00", "bytes": 12}}'
    s3_client.put_object(Bucket=bucket, Key="wrong/manifest.json", Body=body)
    s3_client.put_object(Bucket=bucket, Key="wrong/short.h5", Body=b"eight by")
    keys = {"train": "bare/val.h5", "val": "bare/val.h5", "test": "wrong/short.h5"}
    sources = {split: [{"key": key, "bucket": bucket}] for split, key in keys.items()}
    checks, found = validate_data(in_store(data__sources=sources))
    warning = "no manifest has its SHA-256: what is fetched is compared with the MD5 that"
    assert warning in texts(checks, "warn")["train object"]
    assert one(found, "train").sha256 is None
    assert "8 bytes, but its manifest says 12" in texts(checks)["test object"]


def test_a_store_that_never_answers_is_given_up_in_time(in_store):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        checks, _ = validate_data(in_store(data__endpoint_url=url), timeout_s=0.5)
    assert time.monotonic() - started < 3
    assert texts(checks) == {"object store": f"{url} gave no answer in 0.5 s"}


def test_a_store_that_refuses_connections_is_one_fault_at_once_but_staged_files_are_enough(
    in_store, stage_from_store, closed_url
):
    started = time.monotonic()
    checks, _ = validate_data(in_store(data__endpoint_url=closed_url))
    assert time.monotonic() - started < 3
    assert list(texts(checks)) == ["object store"]
    assert texts(checks)["object store"].startswith(f"{closed_url} cannot be reached: ")
    stage_from_store(in_store())
    checks, _ = validate_data(in_store(data__endpoint_url=closed_url))
    assert texts(checks) == {}
    assert "would take the staged files as they are" in texts(checks, "warn")["object store"]


def test_what_a_store_refuses_for_all_its_objects_is_one_fault(in_store, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    checks, _ = validate_data(in_store())
    assert list(texts(checks)) == ["object store"]
    assert "refuses access (SignatureDoesNotMatch " in texts(checks)["object store"]


def test_missing_credentials_are_one_fault_with_a_remedy_whatever_is_staged(
    in_store, stage_from_store, monkeypatch
):
    config = in_store()
    stage_from_store(config)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    checks, _ = validate_data(config)
    assert list(texts(checks)) == ["object store"]
    assert re.search("found no credentials for .*AWS_SECRET_ACCESS_KEY", *texts(checks).values())


def test_offline_asks_nobody(in_store, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", None)
    checks, _ = validate_data(in_store(), offline=True)
    assert by_name(checks)["object store"].status == "skip"
    assert texts(checks) == {}


def put_nan(path, row=3, value=np.nan):
    with h5py.File(path, "r+") as file:
        file["tensor"][row, 40, 255] = value


def put_fill(path):
    put_nan(path, value=9.96921e36)


def reshaped(*shape):
    return lambda path: rewrite(path, np.ones(shape, "<f4"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put_nan, "NaN, infinite or fill values in trajectory 3 (1 of 20 sampled)"),
        (put_fill, "NaN, infinite or fill values in trajectory 3 (1 of 20 sampled)"),
        (reshaped(20, 256), "has shape (20, 256), expected"),
        (reshaped(20, 41, 128), "has 128 grid points, expected 256"),
        (reshaped(20, 3, 256), "trajectories have 3 frames"),
        (lambda path: path.write_bytes(path.read_bytes()[:90_000]), "is truncated"),
        (lambda path: path.write_bytes(b"no HDF5 at all"), "that are not HDF5"),
    ],
    ids=["NaN", "fill", "rank", "grid", "frames", "truncated", "not HDF5"],
)
def test_each_fault_of_a_file_is_found_and_the_others_are_checked(local, change, message):
    checks, _ = validate_data(local(change))
    assert message in texts(checks)["train file"]
    assert {by_name(checks)[f"{split} file"].status for split in ("val", "test")} == {"ok"}


def test_a_trajectory_of_zeros_is_named(local):
    def zero(path):
        with h5py.File(path, "r+") as file:
            file["tensor"][7] = 0

    (train, *others) = [c for c in validate_data(local(zero))[0] if c.name.endswith("file")]
    assert (train.status, train.figures["zero"]) == ("warn", [7])
    assert "trajectory 7 (1 of 20 sampled) is zero throughout" in train.text
    assert {check.status for check in others} == {"ok"}


def test_rows_that_are_not_there_are_a_fault_and_nan_is_named_by_its_row(
    in_store, s3_client, bucket, tiny_data, tmp_path, stage_from_store
):
    broken = tmp_path / "broken.h5"
    shutil.copy(tiny_data / "burgers1d_train.h5", broken)
    put_nan(broken)
    s3_client.upload_file(str(broken), bucket, "rows/all.h5")
    rows = {"train": [2, 10], "val": [10, 15], "test": [15, 20]}
    sources = {s: [{"key": "rows/all.h5", "bucket": bucket, "rows": r}] for s, r in rows.items()}
    stage_from_store(in_store(data__sources=sources))
    sources["test"][0]["rows"] = [15, 21]
    checks, _ = validate_data(in_store(data__sources=sources))
    assert "in trajectory 3 (1 of 8 sampled)" in texts(checks)["train file"]
    assert "rows [15, 21) asked for, the file has 20" in texts(checks)["test file"]
    assert by_name(checks)["val file"].status == "ok"


def test_the_sample_is_spread_over_the_file_and_a_missing_file_is_a_fault_of_its_split(local):
    checks, _ = validate_data(local(lambda path: put_nan(path, row=19)), num_sampled=3)
    assert "in trajectory 19 (1 of 3 sampled)" in texts(checks)["train file"]
    checks, _ = validate_data(local(Path.unlink))
    assert "no train data in" in texts(checks)["train"]
    assert by_name(checks)["val file"].status == "ok"


def test_frames_of_a_splits_files_are_compared_after_the_stride_as_a_run_does(local):
    def shards(num_frames):
        def cut(path):
            rewrite(path, np.ones((2, num_frames, 256), "<f4"))
            shutil.copy(path.with_name("burgers1d_val.h5"), path.with_name("burgers1d_train_b.h5"))
            path.rename(path.with_name("burgers1d_train_a.h5"))

        return cut

    found = texts(validate_data(local(shards(21)))[0])  # the other has 41
    wanted = r"train_a\.h5 have 21 frames and those of .*train_b\.h5 41: .* that is 6 and 11, "
    assert re.search(wanted, found["train frames"])
    assert found.keys() == {"train frames"}
    assert texts(validate_data(local(shards(45)))[0]).keys() == {"train frames"}
    assert texts(validate_data(local(shards(44)))[0]) == {}  # frames 0, 4, … 40 of both


def test_rows_in_two_splits_or_twice_in_one_are_a_warning_of_each_run_too(in_store, bucket):
    def warning(train, val, test, keys=("all.h5", "all.h5", "all.h5")):
        rows = dict(zip(SPLITS, (train, val, test), strict=True))
        sources = {
            split: [{"key": key, "bucket": bucket, "rows": r} for r in rows[split]]
            for split, key in zip(SPLITS, keys, strict=True)
        }
        config = in_store(data__sources=sources)
        at_once = texts(check_head(config), "warn").get("shared rows")
        assert texts(validate_data(config, offline=True)[0], "warn").get("shared rows") == at_once
        return at_once

    assert warning([[8, 24]], [[4, 8]], [[0, 4]]) is None
    assert warning([[0, 24]], [[0, 24]], [None], keys=("a.h5", "b.h5", "c.h5")) is None
    uri = f"s3://{bucket}/all.h5"
    assert warning([[0, 24]], [[24, 30]], [[20, 28]]) == (
        f"rows [20, 24) of {uri} are in train and in test; rows [24, 28) of {uri} are in val and "
        "in test: what is trained on tests nothing"
    )
    assert f"all rows of {uri} are in train and in train" in warning(
        [None, None], [[0, 1]], [[1, 2]]
    )


def test_one_content_under_two_names_is_seen_by_its_digest_or_its_inode(
    in_store, bucket, s3_client, tiny_data, local
):
    keys = {"train": "copied/a.h5", "val": "copied/b.h5", "test": "copied/c.h5"}
    digest = {"sha256": "ab" * 32, "bytes": 3}
    manifest = json.dumps({"a.h5": digest, "b.h5": {**digest, "sha256": "cd" * 32}, "c.h5": digest})
    for key in keys.values():
        s3_client.put_object(Bucket=bucket, Key=key, Body=b"one")
    s3_client.put_object(Bucket=bucket, Key="copied/manifest.json", Body=manifest.encode())
    sources = {split: [{"key": key, "bucket": bucket}] for split, key in keys.items()}
    checks, _ = validate_data(in_store(data__sources=sources))
    expected = (
        f"all rows of s3://{bucket}/copied/a.h5 (the same as s3://{bucket}/copied/c.h5) are in"
    )
    assert texts(checks, "warn")["shared rows"].startswith(expected)

    def link(path):
        path.unlink()
        path.hardlink_to(path.with_name("burgers1d_test.h5"))

    assert "are in train and in test" in texts(check_head(local(link)), "warn")["shared rows"]


def test_keys_that_would_be_one_local_file_are_a_fault_before_anything_is_fetched(in_store, bucket):
    keys = {"train": "a/b.h5", "val": "a//b.h5", "test": "a/b.h5/c.h5"}
    sources = {split: [{"key": key, "bucket": bucket}] for split, key in keys.items()}
    faults = texts(check_head(in_store(data__sources=sources)))
    assert faults.keys() == {"val sources", "test sources"}
    assert f"s3://{bucket}/a//b.h5 would be staged as" in faults["val sources"]
    assert f"s3://{bucket}/a/b.h5 as" in faults["val sources"]


def test_files_that_are_left_out_are_named(local):
    def add_shards(path):
        for name in ("burgers1d_train_0.h5", "burgers1d_train_1.h5", "burgers1d_train.hdf5"):
            shutil.copy(path, path.with_name(name))
        shutil.copy(path, path.with_name("burgers1d_valid.h5"))

    warnings = texts(check_head(local(add_shards)), "warn")
    assert warnings["train"] == (
        "burgers1d_train.h5 is taken, and left out are burgers1d_train.hdf5, "
        "burgers1d_train_0.h5, burgers1d_train_1.h5: move away what is not meant"
    )
    assert "burgers1d_val.h5 is taken, and left out are burgers1d_valid.h5:" in warnings["val"]
    assert "test" not in warnings
