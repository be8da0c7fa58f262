"""A Prefect server of the session's own, and a tiny config whose data lie in a real S3 store."""

from __future__ import annotations

from collections.abc import Iterator

import boto3
import pytest
import yaml
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_HOME,
    PREFECT_LOGGING_TO_API_ENABLED,
    PREFECT_SERVER_ALLOW_EPHEMERAL_MODE,
    PREFECT_SERVER_ANALYTICS_ENABLED,
    PREFECT_SERVER_DATABASE_CONNECTION_URL,
    temporary_settings,
)

from ups.config import SPLITS
from ups.data.objectstore import ObjectStore

BUCKET = "tiny"


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API URL of a server with an empty database; no heartbeats, which cost a second a flow."""
    from prefect.events.worker import EventsWorker
    from prefect.server.api.server import SubprocessASGIServer

    home = tmp_path_factory.mktemp("prefect")
    settings = {
        PREFECT_HOME: home,
        PREFECT_SERVER_DATABASE_CONNECTION_URL: f"sqlite+aiosqlite:///{home}/test.db",
        PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: False,
        PREFECT_SERVER_ANALYTICS_ENABLED: False,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
        PREFECT_LOGGING_TO_API_ENABLED: False,
    }
    with temporary_settings(settings):
        server = SubprocessASGIServer()
        server.start(timeout=90)
        try:
            with temporary_settings({PREFECT_API_URL: server.api_url}):
                yield server.api_url
                EventsWorker.drain_all()
        finally:
            server.stop()


@pytest.fixture(scope="session")
def bucket(s3, tiny_data) -> str:
    """The tiny data set as objects with a manifest."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.env.items():
            patch.setenv(name, value)
        store = ObjectStore()
        for split in SPLITS:
            name = f"burgers1d_{split}.h5"
            store.upload(tiny_data / name, BUCKET, f"burgers1d/{name}")
        store.close()
    return BUCKET


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
