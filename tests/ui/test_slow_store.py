"""The object store slowed down from outside: the benchmark fails, and its page says why."""

import contextlib
import functools
import os
import re
import socket
import subprocess
import sys

import psutil
import pytest
from playwright.sync_api import expect

from deployments.layout import BIN_DIR, PROJECT_DIR
from tests.live import free_ports, wait_until

pytestmark = pytest.mark.ui

BYTES_S = 500_000  # 13 s more: on a busy machine a start may have taken six


def test_a_slowed_object_store_is_worse_download_and_fails_the_run(
    live, trigger_benchmark, page, shoot
):
    with slowed(live.stack, *free_ports(1)):
        run = live.wait_for_state(trigger_benchmark(scenarios=["cold"], repeats=1))
    done = live.ups("up")  # starts the store that was killed
    assert done.returncode == 0, done.stderr
    assert run["state_type"] == "FAILED"
    assert "cold: worse: download" in run["state"]["message"]
    artifact = live.artifact("benchmark-startup", run["id"])
    page.goto(f"/artifacts/artifact/{artifact['id']}")
    expect(page.get_by_role("heading", name="Worse: cold")).to_be_visible()
    for figure in ("TTFS", "idle"):
        line = re.compile(rf"cold: worse: download [^;]* s; {figure} ")
        expect(page.get_by_text(line)).to_be_visible()
    shoot("slow-store")


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
