"""The S3 server of the download benchmark: `rclone serve s3` on loopback, and its objects."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from speed import inputs
from ups.data.blocks import describe_file

BUCKET = "bench"
BIN_DIR = Path(sys.executable).parent
START_TIMEOUT_S = 20


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs, and its keys."""

    ports: dict[str, int]  # per address that it listens on
    access_key: str
    secret_key: str

    def env(self, url: str) -> dict[str, str]:
        """With which boto3, s5cmd and rclone reach it at this address."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL_S3": url,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "S3_ENDPOINT_URL": url,
            "RCLONE_CONFIG": os.devnull,
            "RCLONE_S3_PROVIDER": "Rclone",
            "RCLONE_S3_ENDPOINT": url,
            "RCLONE_S3_ACCESS_KEY_ID": self.access_key,
            "RCLONE_S3_SECRET_ACCESS_KEY": self.secret_key,
            "RCLONE_S3_REGION": "us-east-1",
        }


@contextlib.contextmanager
def serve(
    folder: Path, log: Path, hosts: Sequence[str], *, hashes: bool = True
) -> Iterator[Server]:
    """The server over `folder`, whose folders are buckets, on free ports of these addresses.

    Args:
        hashes: an ETag is the MD5, for which the server reads an object when first asked for it.
    """
    access_key, secret_key = secrets.token_hex(8), secrets.token_hex(16)
    command = [str(BIN_DIR / "rclone"), "serve", "s3", str(folder)]
    for host in hosts:
        command += ["--addr", f"{host}:0"]
    command += [] if hashes else ["--etag-hash", ""]
    env = {**os.environ, "RCLONE_AUTH_KEY": f'"{access_key},{secret_key}"'}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--config", os.devnull], env=env, stdout=output, stderr=output
        )
    try:
        yield Server(_ports(process, log, len(hosts)), access_key, secret_key)
    finally:
        process.terminate()
        process.wait()


def make_objects(folder: Path, sizes: Mapping[str, Sequence[int]]) -> dict[str, list[str]]:
    """Objects of random bytes, per prefix as many as sizes, and a manifest beside them.

    Returns:
        prefix → keys.
    """
    keys: dict[str, list[str]] = {}
    for prefix, of_prefix in sizes.items():
        directory = folder / BUCKET / prefix
        names = [f"object-{i}-{size}" for i, size in enumerate(of_prefix)]
        keys[prefix] = [f"{prefix}/{name}" for name in names]
        if all((directory / name).exists() for name in [*names, "manifest.json"]):
            continue
        inputs.empty(directory)
        manifest = {}
        for name, size in zip(names, of_prefix, strict=True):
            _write_random(directory / name, size)
            manifest[name] = describe_file(directory / name)
        (directory / "manifest.json").write_text(json.dumps(manifest))
    return keys


def without_blocks(folder: Path, prefix: str) -> list[str]:
    """The keys of the same objects beside a manifest as it was before it had digests of blocks."""
    directory = folder / BUCKET / prefix
    beside = inputs.empty(folder / BUCKET / f"{prefix}-sha256")
    manifest = json.loads((directory / "manifest.json").read_text())
    for name, entry in manifest.items():
        os.link(directory / name, beside / name)
        entry.pop("blocks", None)
    (beside / "manifest.json").write_text(json.dumps(manifest))
    return [f"{prefix}-sha256/{name}" for name in manifest]


def _write_random(path: Path, size: int) -> None:
    with path.open("wb") as file:
        for first in range(0, size, 8 << 20):
            file.write(os.urandom(min(8 << 20, size - first)))


def _ports(process: subprocess.Popen[bytes], log: Path, count: int) -> dict[str, int]:
    """The ports that the server says it listens on."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        found = re.findall(r"http://([\d.]+):(\d+)/", log.read_text())
        if len(found) >= count:
            return {host: int(port) for host, port in found}
        time.sleep(0.02)
    raise RuntimeError(f"the S3 server did not start: {log.read_text()[-300:]}")
