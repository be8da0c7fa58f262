"""An object in the S3 server, and stores that reach it, or the proxy before it."""

from __future__ import annotations

from contextlib import ExitStack, closing

import pytest

from tests.data.objects import BUCKET, CONTENT, MIB, QUICK, manifest_key
from ups.data.objectstore import ObjectStore
from ups.data.transfer import download


@pytest.fixture(scope="module")
def environment(s3):
    """The S3 server as the one that this process uses, for a whole module."""
    with s3.used():
        yield


@pytest.fixture(scope="module")
def store(environment):
    with closing(ObjectStore(retry=QUICK)) as store:
        yield store


@pytest.fixture(scope="module")
def proxied(environment, proxy_handler):
    """A store that is reached through the proxy."""
    with closing(ObjectStore(proxy_handler.proxy.url, retry=QUICK)) as store:
        yield store


@pytest.fixture
def connect(environment):
    """Stores that retry quickly, closed when the test ends."""
    with ExitStack() as stack:
        yield lambda url=None: stack.enter_context(closing(ObjectStore(url, retry=QUICK)))


@pytest.fixture(scope="module")
def key(store, tmp_path_factory):
    """An object with a manifest, which stays as it is."""
    source = tmp_path_factory.mktemp("source") / "x.h5"
    source.write_bytes(CONTENT)
    store.upload(source, BUCKET, "shared/x.h5")
    return "shared/x.h5"


@pytest.fixture
def own_key(key, s3_client, request):
    """A copy of it that a test may change."""
    own = f"{request.node.name}/x.h5"
    for source, target in ((key, own), (manifest_key(key), manifest_key(own))):
        s3_client.copy_object(Bucket=BUCKET, Key=target, CopySource=f"{BUCKET}/{source}")
    return own


@pytest.fixture
def dest(tmp_path):
    return tmp_path / "data" / "x.h5"


@pytest.fixture
def fetch(proxied, proxy, key, dest):
    """Download an object through the proxy in ranges of 1 MiB."""

    def fetch(key=key, **options):
        return download(proxied, BUCKET, key, dest, **{"range_bytes": MIB, **options})

    return fetch
