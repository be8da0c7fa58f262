"""Objects in a real store and files on the disk: what is wrong with them, and nothing fetched."""

import shutil
import socket
import time

import h5py
import numpy as np
import pytest

from ups.validate.data import validate_data


def statuses(checks):
    return {check.name: check.status for check in checks}


def texts(checks, status="fault"):
    return {check.name: check.text for check in checks if check.status == status}


@pytest.fixture
def local(tiny_data, tmp_path, on_disk):
    """`local(change)`: the tiny files, of which `change` may do something to the train file."""

    def make(change=lambda path: None, **overrides):
        root = tmp_path / "local"
        shutil.copytree(tiny_data, root, ignore=lambda *_: [], dirs_exist_ok=True)
        change(root / "burgers1d_train.h5")
        return on_disk(data__root=str(root), **overrides)

    return make


def rewrite(path, tensor):
    with h5py.File(path, "r+") as file:
        del file["tensor"], file["t-coordinate"]
        file["tensor"] = tensor
        file.attrs["dt"] = 0.01


def test_objects_are_found_with_size_and_sha256_and_not_fetched(in_store, tmp_path, tiny_data):
    checks, sources = validate_data(in_store())
    assert texts(checks) == {}
    train = next(check for check in checks if check.name == "train object")
    size = (tiny_data / "burgers1d_train.h5").stat().st_size
    assert train.status == "ok"
    assert train.figures["num_bytes"] == size
    assert f"SHA-256 {train.figures['sha256'][:12]}… by its manifest" in train.text
    assert sources["train"][0].fetch_bytes == size
    assert not (tmp_path / "staged").exists()


def test_what_is_staged_is_read_and_not_counted_as_to_be_fetched(in_store, stage_from_store):
    parsed = in_store()
    stage_from_store(parsed.config)
    checks, sources = validate_data(parsed)
    assert set(statuses(checks).values()) == {"ok"}
    file = next(check for check in checks if check.name == "val file")
    assert file.figures["shape"] == (5, 41, 256)
    assert "ν 0.02, dt 0.01; 5 sampled, all finite" in file.text
    assert sum(known.fetch_bytes for of in sources.values() for known in of) == 0


def test_a_staged_file_of_another_version_is_fetched_again(in_store, stage_from_store, tiny_data):
    parsed = in_store()
    staged = stage_from_store(parsed.config)["val"][0]
    shutil.copy(tiny_data / "burgers1d_test.h5", staged.path)
    checks, sources = validate_data(parsed)
    assert statuses(checks)["val file"] == "skip"
    assert sources["val"][0].fetch_bytes == staged.num_bytes


def test_missing_objects_are_faults_and_say_what_is_there(in_store, bucket):
    sources = {
        "train": [{"key": "tiny/nowhere.h5", "bucket": bucket}],
        "val": [{"key": "x.h5", "bucket": "no-such-bucket"}],
        "test": [{"key": "tiny/burgers1d_test.h5", "bucket": bucket}],
    }
    checks, _ = validate_data(in_store(data__sources=sources))
    faults = texts(checks)
    assert faults.keys() == {"train object", "val object"}
    assert "no such key" in faults["train object"]
    assert "tiny/burgers1d_test.h5" in faults["train object"]
    assert "no such bucket" in faults["val object"]


def test_a_missing_object_that_is_generated_is_no_fault(in_store):
    generate = {"nu": 0.01, "num_trajectories": {"train": 20, "val": 5, "test": 6}}
    sources = {s: [{"key": f"made/{s}.h5", "bucket": "made"}] for s in ("train", "val", "test")}
    checks, found = validate_data(in_store(data__sources=sources, data__generate=generate))
    assert texts(checks) == {}
    train = next(check for check in checks if check.name == "train object")
    assert "is not there yet: `ups run` generates it, 20 trajectories, 4.12 MB" in train.text
    assert found["train"][0].fetch_bytes == 20 * 201 * 256 * 4


def test_an_object_without_a_digest_is_a_warning(in_store, s3_client, bucket, tiny_data):
    s3_client.upload_file(str(tiny_data / "burgers1d_val.h5"), bucket, "bare/val.h5")
    sources = {s: [{"key": "bare/val.h5", "bucket": bucket}] for s in ("train", "val", "test")}
    checks, found = validate_data(in_store(data__sources=sources))
    assert "no manifest has its SHA-256" in texts(checks, "warn")["train object"]
    assert found["train"][0].sha256 is None


def test_an_object_whose_size_is_not_the_manifests_is_a_fault(in_store, s3_client, bucket):
    body = b'{"short.h5": {"sha256": "00", "bytes": 12}}'
    s3_client.put_object(Bucket=bucket, Key="wrong/manifest.json", Body=body)
    s3_client.put_object(Bucket=bucket, Key="wrong/short.h5", Body=b"eight by")
    sources = {s: [{"key": "wrong/short.h5", "bucket": bucket}] for s in ("train", "val", "test")}
    checks, _ = validate_data(in_store(data__sources=sources))
    assert "8 bytes, but its manifest says 12" in texts(checks)["train object"]


def test_a_store_that_refuses_connections_is_one_fault_at_once(in_store):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        started = time.monotonic()
        checks, _ = validate_data(in_store(data__endpoint_url=url))
    assert time.monotonic() - started < 3
    assert texts(checks)["object store"].startswith(f"{url} cannot be reached: ")
    assert list(texts(checks)) == ["object store"]


def test_a_store_that_never_answers_is_given_up_in_time(in_store):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        checks, _ = validate_data(in_store(data__endpoint_url=url), timeout_s=0.5)
    assert time.monotonic() - started < 3
    assert texts(checks) == {"object store": f"{url} gave no answer in 0.5 s"}


def test_without_the_store_staged_files_are_enough(in_store, stage_from_store):
    parsed = in_store()
    stage_from_store(parsed.config)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        data = parsed.config.data.model_copy(update={"endpoint_url": url})
        config = parsed.config.model_copy(update={"data": data})
        checks, _ = validate_data(type(parsed)("tiny.yaml", config))
    assert texts(checks) == {}
    assert "would take the staged files as they are" in texts(checks, "warn")["object store"]


def test_missing_credentials_are_one_fault_with_a_remedy_whatever_is_staged(
    in_store, stage_from_store, monkeypatch
):
    parsed = in_store()
    stage_from_store(parsed.config)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    checks, _ = validate_data(parsed)
    assert list(texts(checks)) == ["object store"]
    assert "found no credentials for" in texts(checks)["object store"]
    assert "AWS_SECRET_ACCESS_KEY" in texts(checks)["object store"]


def test_offline_asks_nobody(in_store, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", None)
    checks, _ = validate_data(in_store(), offline=True)
    assert statuses(checks)["object store"] == "skip"
    assert texts(checks) == {}


def nan_in_row_3(path):
    with h5py.File(path, "r+") as file:
        file["tensor"][3, 40, 255] = np.nan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (nan_in_row_3, "NaN or infinite values in trajectory 3 (1 of 20 sampled)"),
        (lambda path: rewrite(path, np.ones((20, 256), "<f4")), "has shape (20, 256), expected"),
        (
            lambda path: rewrite(path, np.ones((20, 41, 128), "<f4")),
            "has 128 grid points, expected 256",
        ),
        (lambda path: rewrite(path, np.ones((20, 3, 256), "<f4")), "trajectories have 3 frames"),
        (lambda path: path.write_bytes(path.read_bytes()[:90_000]), "is truncated"),
        (lambda path: path.write_bytes(b"no HDF5 at all"), "that are not HDF5"),
    ],
    ids=["NaN", "rank", "grid", "frames", "truncated", "not HDF5"],
)
def test_each_fault_of_a_file_is_found_and_the_others_are_checked(local, change, message):
    checks, _ = validate_data(local(change))
    assert message in texts(checks)["train file"]
    assert statuses(checks)["val file"] == statuses(checks)["test file"] == "ok"


def test_rows_that_are_not_there_are_a_fault_and_nan_is_named_by_its_row(
    in_store, s3_client, bucket, tiny_data, tmp_path, stage_from_store
):
    broken = tmp_path / "broken.h5"
    shutil.copy(tiny_data / "burgers1d_train.h5", broken)
    nan_in_row_3(broken)
    s3_client.upload_file(str(broken), bucket, "rows/all.h5")
    rows = {"train": [2, 10], "val": [10, 15], "test": [15, 21]}
    sources = {s: [{"key": "rows/all.h5", "bucket": bucket, "rows": r}] for s, r in rows.items()}
    parsed = in_store(data__sources=sources)
    stage_from_store(parsed.config)
    checks, _ = validate_data(parsed)
    assert "in trajectory 3 (1 of 8 sampled)" in texts(checks)["train file"]
    assert "rows [15, 21) asked for, the file has 20" in texts(checks)["test file"]
    assert statuses(checks)["val file"] == "ok"


def test_the_sample_is_spread_over_the_file(local):
    checks, _ = validate_data(local(), num_sampled=3)
    assert next(c for c in checks if c.name == "train file").figures["num_sampled"] == 3


def test_files_that_are_not_there_are_a_fault_of_their_split(local):
    checks, _ = validate_data(local(lambda path: path.unlink()))
    assert "no train data in" in texts(checks)["train"]
    assert statuses(checks)["val file"] == "ok"


def test_shards_of_a_split_must_have_the_same_number_of_frames(local):
    def cut(path):
        rewrite(path, np.ones((20, 21, 256), "<f4"))
        shutil.copy(path.with_name("burgers1d_val.h5"), path.with_name("burgers1d_train_b.h5"))
        path.rename(path.with_name("burgers1d_train_a.h5"))

    checks, _ = validate_data(local(cut))
    assert texts(checks)["train files"].startswith("trajectories have 21 and 41 frames")
