"""A tiny config whose data lie in a real S3 store, for flows on a Prefect server of our own."""

from __future__ import annotations

import boto3
import pytest
import yaml

from ups.config import SPLITS


@pytest.fixture
def flow_config(prefect_server, s3, bucket, tiny_config, tmp_path, monkeypatch):
    """`flow_config(**overrides)`: the path of a config whose splits are objects in the store."""
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)

    def write(**overrides: object) -> str:
        sources = {
            split: [{"key": f"burgers1d/burgers1d_{split}.h5", "bucket": bucket}]
            for split in SPLITS
        }
        given = {"data__sources": sources, "data__root": str(tmp_path / "staged"), **overrides}
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump(tiny_config(**given).model_dump(mode="json")))
        return str(path)

    return write


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
