"""An entry that is built and looked at."""

import os
import time

import pytest

from ups.latents import store
from ups.latents.build import ensure
from ups.latents.entries import entries


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
