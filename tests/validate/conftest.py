"""Configs whose data lie in a real S3 store, and the checks of one group of them."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from ups.config import SPLITS, RunConfig
from ups.data.sources import open_store, stage


@pytest.fixture
def in_store(bucket_sources, store_env, tiny_config, tmp_path) -> Callable[..., RunConfig]:
    """`in_store(**overrides)`: the tiny config with its splits in the store, staged in tmp_path."""

    def make(**overrides: object) -> RunConfig:
        given = {"data__sources": bucket_sources, "data__root": str(tmp_path / "staged")}
        return tiny_config(**{**given, **overrides})

    return make


@pytest.fixture
def closed_url():
    """Of a port where nobody listens."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{closed.getsockname()[1]}"


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
