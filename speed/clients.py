"""The Python clients of the download benchmark: ours, boto3's, and a bare socket as the bound.

Runs in a process of its own (`worker`), on the clients' side of the link. Each call makes a new
client, as a new process would; its seconds are reported apart from those of the download.
"""

from __future__ import annotations

import http.client
import os
import resource
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config

from ups.data.objectstore import ObjectStore
from ups.data.transfer import download


def ours(bucket: str, keys: list[str], folder: str) -> dict[str, float]:
    """`ups.data.transfer.download`, compared with what the manifest has."""

    def fetch(store: ObjectStore, key: str) -> None:
        if download(store, bucket, key, Path(folder) / Path(key).name).reused:
            raise RuntimeError("the file was there already")

    return _downloaded(ObjectStore, fetch, keys)


def boto(bucket: str, keys: list[str], folder: str) -> dict[str, float]:
    """`download_file` with boto3's own settings, an object a thread."""

    def fetch(client: Any, key: str) -> None:
        client.download_file(bucket, key, os.path.join(folder, Path(key).name))

    return _downloaded(lambda: boto3.session.Session().client("s3"), fetch, keys)


def socket_to_nowhere(bucket: str, keys: list[str]) -> dict[str, float]:
    """Each object over one connection into one buffer, all at once; written nowhere."""
    client = boto3.session.Session().client("s3", config=Config(signature_version="s3v4"))
    parameters = [{"Bucket": bucket, "Key": key} for key in keys]
    urls = [client.generate_presigned_url("get_object", Params=p) for p in parameters]
    client.close()

    def read(url: str) -> None:
        parts = urlsplit(url)
        connection = http.client.HTTPConnection(parts.netloc, timeout=60)
        connection.request("GET", f"{parts.path}?{parts.query}")
        answer, buffer = connection.getresponse(), bytearray(1 << 20)
        if answer.status != 200:
            raise RuntimeError(f"{answer.status} {answer.read(200)!r}")
        while answer.readinto(buffer):
            pass
        connection.close()

    return _measured(read, urls)


def first_head(bucket: str, key: str) -> float:
    """Seconds until the server answers for an object, which it may first have to hash."""
    client = boto3.session.Session().client("s3", config=Config(read_timeout=300))
    started = time.perf_counter()
    client.head_object(Bucket=bucket, Key=key)
    seconds = time.perf_counter() - started
    client.close()
    return seconds


def _downloaded(
    connect: Callable[[], Any], fetch: Callable[[Any, str], None], keys: list[str]
) -> dict[str, float]:
    started = time.perf_counter()
    client = connect()
    client_s = time.perf_counter() - started
    found = _measured(partial(fetch, client), keys)
    client.close()
    return {**found, "client_s": client_s}


def _measured(work: Callable[[str], None], items: list[str]) -> dict[str, float]:
    """Seconds of the work on all items at once, a thread each."""
    before, started = _cpu_s(), time.perf_counter()
    with ThreadPoolExecutor(len(items)) as pool:
        for _ in pool.map(work, items):
            pass
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "cpu_s": _cpu_s() - before}


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
