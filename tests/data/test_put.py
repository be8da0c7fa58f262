"""Files into the store and back: several at once, none twice, nothing replaced unasked."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path

import pytest

from tests.data.objects import BUCKET
from ups.data import put as module
from ups.data.objectstore import ObjectStore
from ups.data.put import get, plan_get, plan_put, put
from ups.data.uri import Address
from ups.errors import ConfigError, DataError, Interrupted, ObjectUnavailable


@pytest.fixture
def target(request):
    return Address(BUCKET, f"{request.node.originalname}/")


@pytest.fixture
def folder(tmp_path):
    """Files in a folder, one of them in a folder below it, and a hidden one."""
    root = tmp_path / "mine"
    for name in ("a.h5", "b.h5", "sub/c.h5", ".hidden"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


@pytest.fixture
def manifest(s3_client, target):
    def read(below=""):
        place = {"Bucket": BUCKET, "Key": f"{target.key}{below}manifest.json"}
        return json.loads(s3_client.get_object(**place)["Body"].read())

    return read


def names(plan):
    return sorted(key.partition("/")[2] for key in plan)


def test_a_folder_goes_there_with_its_manifests_and_comes_back(
    store, folder, target, manifest, tmp_path
):
    told = []
    plan = plan_put([str(folder)], target)
    sent = put(store, BUCKET, plan, progress=lambda *args: told.append(args))
    assert names(plan) == ["a.h5", "b.h5", "sub/c.h5"]
    assert [each.was_there for each in sent] == [False] * 3
    assert told[-1] == (16, 16)
    assert manifest()["a.h5"]["sha256"] == hashlib.sha256(b"a.h5").hexdigest()
    assert sorted({**manifest(), **manifest("sub/")}) == ["a.h5", "b.h5", "c.h5"]
    back = plan_get(store, target, tmp_path / "back")
    assert names(back) == names(plan)
    done = get(store, BUCKET, back)
    assert all(each.is_verified for each in done)
    assert (tmp_path / "back" / "sub" / "c.h5").read_text() == "sub/c.h5"


def test_what_is_there_is_not_sent_again_and_not_replaced_unasked(
    store, folder, target, manifest, monkeypatch
):
    plan = plan_put([str(folder)], target)
    put(store, BUCKET, plan)
    (folder / "d.h5").write_text("d")
    sent = []
    send = ObjectStore.send
    monkeypatch.setattr(
        ObjectStore, "send", lambda self, path, *args: sent.append(path) or send(self, path, *args)
    )
    again = plan_put([str(folder)], target)
    assert [each.was_there for each in put(store, BUCKET, again)] == [True, True, False, True]
    assert sent == [folder / "d.h5"]
    (folder / "a.h5").write_text("A.h5")
    (folder / "e.h5").write_text("e")
    again = plan_put([str(folder)], target)
    with pytest.raises(ConfigError, match=r"/a.h5 is there already, 4 bytes with another SHA-256"):
        put(store, BUCKET, again)
    assert len(sent) == 1  # not e.h5 either
    put(store, BUCKET, again, overwrite=True)
    assert manifest()["a.h5"]["sha256"] == hashlib.sha256(b"A.h5").hexdigest()
    assert len(sent) == 3


def test_what_was_sent_and_not_recorded_is_recorded_without_its_bytes(
    store, folder, target, manifest, monkeypatch, s3_client
):
    path = folder / "a.h5"
    s3_client.put_object(Bucket=BUCKET, Key=f"{target.key}a.h5", Body=path.read_bytes())
    monkeypatch.setattr(ObjectStore, "send", None)
    (sent,) = put(store, BUCKET, plan_put([str(path)], target))
    assert sent.was_there
    assert list(manifest()) == ["a.h5"]


def test_what_was_sent_before_a_stop_is_in_the_manifest(
    store, folder, target, manifest, monkeypatch
):
    monkeypatch.setattr(module, "FILES_AT_ONCE", 1)
    stop = threading.Event()
    plan = plan_put([str(folder)], target)
    with pytest.raises(Interrupted):
        put(store, BUCKET, plan, progress=lambda *_: stop.set(), stop=stop)
    assert list(manifest()) == ["a.h5"]


def test_a_manifest_is_not_written_for_each_object(store, tmp_path, target, monkeypatch):
    written = []
    record = ObjectStore.record
    monkeypatch.setattr(
        ObjectStore, "record", lambda self, *args: written.append(args) or record(self, *args)
    )
    for number in range(40):
        (tmp_path / f"{number}.h5").write_text(str(number))
    put(store, BUCKET, plan_put([str(tmp_path)], target))
    assert len(written) == 1


def test_who_may_not_list_asks_about_each_key(store, folder, target, monkeypatch, s3_client):
    refused = s3_client.exceptions.ClientError(
        {"Error": {"Code": "AccessDenied"}, "ResponseMetadata": {"HTTPStatusCode": 403}}, "List"
    )

    def refuse(*_):
        raise ObjectUnavailable("refused") from refused

    put(store, BUCKET, plan_put([str(folder / "a.h5")], target))
    monkeypatch.setattr(ObjectStore, "below", refuse)
    sent = put(store, BUCKET, plan_put([str(folder)], target))
    assert [each.was_there for each in sent] == [True, False, False]


def test_a_file_of_ones_own_is_not_replaced_by_a_download(store, folder, target, tmp_path):
    put(store, BUCKET, plan_put([str(folder)], target))
    back = plan_get(store, target, tmp_path / "back")
    (tmp_path / "back").mkdir()
    (tmp_path / "back" / "b.h5").write_text("mine")
    with pytest.raises(ConfigError, match=r"b.h5 is there already, and is not s3://"):
        get(store, BUCKET, back)
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == ["b.h5"]
    get(store, BUCKET, back, overwrite=True)
    assert (tmp_path / "back" / "b.h5").read_text() == "b.h5"
    (single,) = plan_get(store, Address(BUCKET, f"{target.key}a.h5"), tmp_path).values()
    assert single == tmp_path / "a.h5"


def test_what_cannot_be_planned_is_refused(store, folder, target, tmp_path):
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        plan_put([str(tmp_path / "nowhere")], target)
    with pytest.raises(ConfigError, match=r"a.h5 and .*b.h5 would both be s3://pdebench/one.h5"):
        plan_put([str(folder / n) for n in ("a.h5", "b.h5")], Address(BUCKET, "one.h5"))
    (folder / "manifest.json").touch()
    with pytest.raises(ConfigError, match=r"manifest.json is what this writes itself"):
        plan_put([str(folder)], target)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="found no file in"):
        plan_put([str(tmp_path / "empty")], target)
    with pytest.raises(DataError, match="found no objects, expected some to fetch"):
        plan_get(store, Address(BUCKET, "nothing/"), Path())
