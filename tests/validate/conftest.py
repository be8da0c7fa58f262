"""Configs whose data lie in a real S3 store, and the checks of one group of them."""

from __future__ import annotations

from collections.abc import Callable

import boto3
import pytest

from ups.config import SPLITS, Parsed
from ups.data.objectstore import ObjectStore
from ups.data.sources import open_store, stage

BUCKET = "checked"


@pytest.fixture(scope="session")
def bucket(s3, tiny_data) -> str:
    """The tiny data set as objects with a manifest."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.env.items():
            patch.setenv(name, value)
        store = ObjectStore()
        for split in SPLITS:
            name = f"burgers1d_{split}.h5"
            store.upload(tiny_data / name, BUCKET, f"tiny/{name}")
        store.close()
    return BUCKET


@pytest.fixture
def store_env(s3, monkeypatch) -> None:
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def s3_client(s3):
    client = boto3.client(
        "s3",
        endpoint_url=s3.endpoint_url,
        aws_access_key_id=s3.access_key,
        aws_secret_access_key=s3.secret_key,
        region_name="us-east-1",
    )
    yield client
    client.close()


@pytest.fixture
def in_store(bucket, store_env, tiny_config, tmp_path) -> Callable[..., Parsed]:
    """`in_store(**overrides)`: the tiny config with its splits in the store, staged in tmp_path."""

    def make(**overrides: object) -> Parsed:
        sources = {
            split: [{"key": f"tiny/burgers1d_{split}.h5", "bucket": bucket}] for split in SPLITS
        }
        given = {"data__sources": sources, "data__root": str(tmp_path / "staged"), **overrides}
        return Parsed("tiny.yaml", tiny_config(**given))

    return make


@pytest.fixture
def on_disk(tiny_config) -> Callable[..., Parsed]:
    """`on_disk(**overrides)`: the tiny config on local files."""
    return lambda **overrides: Parsed("tiny.yaml", tiny_config(**overrides))


@pytest.fixture
def stage_from_store():
    def stage_(config):
        store = open_store(config)
        try:
            return {split: stage(config, split, store) for split in SPLITS}
        finally:
            if store is not None:
                store.close()

    return stage_


def by_name(checks) -> dict[str, tuple[str, str]]:
    """name → (status, text)."""
    return {check.name: (check.status, check.text) for check in checks}
