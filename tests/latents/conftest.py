"""An entry that is built and looked at, and one that is read while it is built."""

import os
import threading
import time
from contextlib import closing

import pytest

from tests.conftest import TINY_FILE
from tests.data.objects import QUICK
from ups.config import SPLITS
from ups.data.objectstore import ObjectStore
from ups.latents import store
from ups.latents.build import ensure
from ups.latents.entries import entries
from ups.latents.scout import scout
from ups.latents.stream import stream_latents
from ups.progress import logged


@pytest.fixture
def build(tiny_config, stage_all):
    """`build(**overrides)`: a config, and its entry as `entries` sees it."""

    def make(**overrides):
        config = tiny_config(**overrides)
        built = ensure(config, stage_all(config))
        found = entries(config.training.latent_cache_dir)
        return config, next(e for e in found if e.generation == built.generation)

    return make


@pytest.fixture
def unused_for():
    """`unused_for(entry, seconds)`: make an entry's last use so long ago."""

    def put_back(entry, seconds):
        at = time.time() - seconds
        os.utime(entry.directory / store.IN_USE_NAME, (at, at))

    return put_back


@pytest.fixture
def streaming(tiny_config, bucket_sources, proxy, store_env, tmp_path):
    """`streaming(**overrides)`: a config, and a stream of what is in the bucket, begun or None."""
    opened = []

    def make(**overrides):
        config = tiny_config(
            **{
                "data__root": str(tmp_path / "data"),
                "data__sources": bucket_sources,
                "data__endpoint_url": proxy.url,
                "features__stream": "on",
                **overrides,
            }
        )
        client, stop = ObjectStore(proxy.url, retry=QUICK), threading.Event()
        opened.append(client.close)
        scouted = scout(config, client, stop, logged)
        if scouted is None:
            return config, None
        opened.append(scouted.close)
        stream = stream_latents(config, scouted, stop, logged)
        if stream is not None:
            opened.append(stream.close)
        return config, stream

    def close():
        while opened:
            opened.pop()()

    make.close = close
    yield make
    close()


@pytest.fixture
def upload(s3_client, tmp_path, request):
    """`upload(file)`: an object of its own for a test; its key."""

    def put(path):
        key = f"{request.node.originalname}/{path.parent.name}/{path.name}"
        with closing(ObjectStore()) as client:
            client.upload(path, "tiny", key)
        return key

    return put


@pytest.fixture
def sources(upload, tiny_data):
    """`sources(train=key)`: copies of the tiny data as objects that a test may change."""
    keys = {split: upload(tiny_data / TINY_FILE.format(split)) for split in SPLITS}

    def of(**others):
        chosen = {**keys, **others}
        return {split: [{"key": key, "bucket": "tiny"}] for split, key in chosen.items()}

    return of
