"""The object store of a stack, slowed down from outside."""

import contextlib
import functools
import os
import socket
import subprocess
import sys

import psutil

from deployments.layout import BIN_DIR, PROJECT_DIR
from tests.live import wait_until

BYTES_S = 1_000_000


@contextlib.contextmanager
def slowed(stack, port):
    """The store is killed; one on another port serves its files through a proxy on its own."""
    psutil.Process(stack.processes.running("object-store").pid).kill()
    keys = stack.store_env()
    pair = f'"{keys["AWS_ACCESS_KEY_ID"]},{keys["AWS_SECRET_ACCESS_KEY"]}"'
    store = [BIN_DIR / "rclone", "serve", "s3", stack.folder / "s3", "--config", os.devnull]
    link = ["-m", "speed.link_proxy", stack.host, str(port), "0", str(BYTES_S)]
    with contextlib.ExitStack() as running:
        running.enter_context(
            started([*store, "--addr", f"{stack.host}:{port}"], RCLONE_AUTH_KEY=pair)
        )
        running.enter_context(started([sys.executable, *link, str(stack.s3_port)]))
        for listening in (port, stack.s3_port):
            wait_until(functools.partial(listens, stack.host, listening), 20)
        yield


@contextlib.contextmanager
def started(command, **env):
    process = subprocess.Popen(
        command,
        env={**os.environ, **env},
        cwd=PROJECT_DIR,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(10)


def listens(host, port):
    with contextlib.suppress(OSError), socket.create_connection((host, port), 1):
        return True
