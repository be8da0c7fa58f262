"""A stack of this folder's own with a small benchmark on it, and a headless browser to look at it.

What a test saw lies in `.ui/` afterwards; of a failed test its last view, as `failed-<test>.png`.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from deployments.layout import PROJECT_DIR, Stack
from ups.config import load_config
from ups.startup.scenarios import BY_NAME, overrides_of

SHOTS = PROJECT_DIR / ".ui"
FLAGS = [
    "--disable-gpu",
    "--enable-unsafe-swiftshader",  # the timeline is drawn with WebGL, here in software
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDTH, HEIGHT = 1440, 900
Ups = Callable[..., tuple[int, str]]
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
BENCHMARK = {"scenarios": ["cold", "warm"], "repeats": 2, "num_trajectories": 8}
COMPLETED_RGB = (34, 160, 80)  # of a bar in the timeline, in both UIs
BAR_PX, LANE_PX = 6, 24  # a bar is at least that wide; two below each other are that far apart
EDGE_PX = 25  # of the timeline: the band of the run's own states


class Live:
    """The stack, and the benchmark that was run on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stack = Stack.find()
        self.api = httpx.Client(base_url=self.stack.api_url, timeout=30)
        self.benchmark_id = self.refused_id = ""

    @property
    def config(self) -> Path:
        return self.folder / "tiny.yaml"

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """What the API answers; asked again while SQLite is busy, which is a 503."""
        deadline = time.monotonic() + 20
        while True:
            answer = self.api.request(method, path, json=body)
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                return answer.raise_for_status().json()
            assert time.monotonic() < deadline, answer.text
            time.sleep(1)

    def deployment(self, name: str) -> dict[str, Any]:
        return self.ask("GET", f"/deployments/name/{name}")

    def trigger(self, name: str, **parameters: Any) -> str:
        path = f"/deployments/{self.deployment(name)['id']}/create_flow_run"
        return self.ask("POST", path, {"parameters": parameters})["id"]

    def trigger_benchmark(self, **parameters: Any) -> str:
        """One small enough to wait for; its history is that of this stack."""
        wanted = {
            **BENCHMARK,
            "folder": str(self.folder / "benchmarks"),
            "thresholds": {"least_runs": 1},
            **parameters,
        }
        return self.trigger("benchmark-startup/benchmark-startup", **wanted)

    def run(self, run_id: str) -> dict[str, Any]:
        return self.ask("GET", f"/flow_runs/{run_id}")

    def runs_of(self, name: str) -> list[dict[str, Any]]:
        only = {"deployments": {"id": {"any_": [self.deployment(name)["id"]]}}}
        return self.ask("POST", "/flow_runs/filter", only)

    def children(self, run_id: str) -> list[dict[str, Any]]:
        """Task runs of a flow run, without those that stand for the flow runs it triggered."""
        only = {"flow_runs": {"id": {"any_": [run_id]}}}
        found = self.ask("POST", "/task_runs/filter", only)
        return [t for t in found if t["state"]["state_details"]["child_flow_run_id"] is None]

    def subflows(self, run_id: str) -> list[dict[str, Any]]:
        only = {"flow_runs": {"parent_flow_run_id": {"any_": [run_id]}}}
        return self.ask("POST", "/flow_runs/filter", only)

    def artifact(self, key: str, run_id: str) -> dict[str, Any]:
        """That a flow run made under this key."""
        only = {"key": {"any_": [key]}, "flow_run_id": {"any_": [run_id]}}
        (artifact,) = self.ask("POST", "/artifacts/filter", {"artifacts": only})
        return artifact

    def wait_until(self, run_id: str, types: set[str], timeout_s: float = 120) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        while (run := self.run(run_id))["state_type"] not in types:
            assert time.monotonic() < deadline, f"{run['name']} is {run['state_name']}"
            time.sleep(0.5)
        return run


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = shutil.which(os.environ.get("UPS_CHROMIUM", "chromium"))
    if path is None:
        pytest.fail(
            "no chromium: run `apt-get install chromium`, or set UPS_CHROMIUM to a browser's path",
            pytrace=False,
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def live(
    browser: Browser,
    ups: Ups,
    free_ports: Callable[[int], list[int]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Live]:
    """With a benchmark that ended, one refused while it ran, and a tiny config for its data."""
    folder = tmp_path_factory.mktemp("ui")
    ports = free_ports(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UPS_STACK_DIR", str(folder / ".stack"))
        patch.setenv("UPS_PREFECT_PORT", str(ports[0]))
        patch.setenv("UPS_S3_PORT", str(ports[1]))
        patch.delenv("PDEBENCH_ROOT", raising=False)
        try:
            code, output = ups("up")
            assert code == 0, output
            live = Live(folder)
            _run_benchmark(live)
            _write_config(live.config)
            yield live
            live.api.close()
        finally:
            ups("down")


def _run_benchmark(live: Live) -> None:
    with _start_benchmark(live.folder / "benchmarks") as process:
        live.benchmark_id = _run_id(process)
        live.wait_until(live.benchmark_id, FINAL | {"RUNNING"})
        live.refused_id = live.trigger_benchmark(folder=str(live.folder / "other"))
        output, errors = process.communicate()
    assert process.returncode == 0, errors
    comparison = json.loads(output)
    assert comparison["record"]["flow_run_id"] == live.benchmark_id
    num_runs = len(BENCHMARK["scenarios"]) * BENCHMARK["repeats"]
    assert f"run {num_runs} of {num_runs}: " in errors


def _start_benchmark(folder: Path) -> subprocess.Popen[str]:
    """`ups benchmark --json`, as a person types it."""
    command = [sys.executable, "-m", "deployments.cli"]
    command += ["benchmark", "-s", ",".join(BENCHMARK["scenarios"]), "--json"]
    command += ["--repeats", str(BENCHMARK["repeats"])]
    rest = {**BENCHMARK, "folder": str(folder), "thresholds": {"least_runs": 1}}
    for name in rest.keys() - {"scenarios", "repeats"}:
        command += ["-p", f"{name}={json.dumps(rest[name])}"]
    return subprocess.Popen(
        command, cwd=PROJECT_DIR, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def _run_id(process: subprocess.Popen[str]) -> str:
    """Of the run that the process says it has started."""
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"/runs/flow-run/([0-9a-f-]{36})", line):
            return found[1]
    pytest.fail(f"no run was started: {process.communicate()[0]}")


def _write_config(path: Path) -> None:
    """A config like the benchmark's, on the objects that it has made."""
    overrides = overrides_of(BY_NAME["cold"], path.parent, BENCHMARK["num_trajectories"])
    config = load_config("benchmark", {**overrides, "name": "tiny"})
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))


@pytest.fixture
def page(browser: Browser, live: Live) -> Iterator[Page]:
    """A page in a context of its own, which reaches the stack alone; times are shown in UTC."""
    context = browser.new_context(
        base_url=live.stack.ui_url,
        viewport={"width": WIDTH, "height": HEIGHT},
        timezone_id="UTC",
        locale="en-US",
        reduced_motion="reduce",
    )
    elsewhere = re.compile(rf"^https?://(?!127\.0\.0\.1:{live.stack.prefect_port}/)")
    context.route(elsewhere, lambda route: route.abort())
    expect.set_options(timeout=15_000)
    context.set_default_timeout(15_000)
    yield context.new_page()
    context.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.failed and (page := getattr(item, "funcargs", {}).get("page")):
        SHOTS.mkdir(exist_ok=True)
        page.screenshot(path=SHOTS / f"failed-{item.name}.png")
    return report


Shoot = Callable[..., None]


@pytest.fixture
def shoot(page: Page) -> Shoot:
    """`shoot(name)`: `.ui/<name>.png` of the page, or of what lies from `top` down to `bottom`."""

    def save(name: str, top: Locator | None = None, bottom: Locator | None = None) -> None:
        page.wait_for_load_state("networkidle")
        clip = None
        if top is not None:
            box, last = top.bounding_box(), (bottom or top).bounding_box()
            assert box
            assert last
            clip = {
                "x": box["x"] - 16,
                "y": box["y"] - 16,
                "width": box["width"] + 32,
                "height": last["y"] + last["height"] - box["y"] + 32,
            }
        SHOTS.mkdir(exist_ok=True)
        page.screenshot(path=SHOTS / f"{name}.png", clip=clip)

    return save


class Timeline:
    """Of a run's page. It is a canvas: what is written in it does not stand in the document."""

    def __init__(self, page: Page) -> None:
        self.page, self.canvas = page, page.locator("canvas")

    def open(self, run_id: str, ui: str = "") -> None:
        self.page.set_viewport_size({"width": 1200, "height": 700})
        self.page.goto(f"{ui}/runs/flow-run/{run_id}")

    def bars(self, num: int) -> list[tuple[float, float]]:
        """Once there are so many and they stand still; after some seconds, as they are."""
        deadline, before = time.monotonic() + 15, None
        while time.monotonic() < deadline:
            bars = _bars(self.canvas.screenshot())
            if len(bars) == num and bars == before:
                break
            before = bars
            self.page.wait_for_timeout(200)
        return bars

    def names(self, num: int) -> list[str]:
        """What the panel says that opens when a bar is clicked; in the first UI."""
        names = []
        for x, y in self.bars(num):
            self.canvas.click(position={"x": x, "y": y})
            panel = self.page.locator(".flow-run-graph-selection-panel")
            expect(panel).to_contain_text("Duration")
            names.append(panel.inner_text().partition("\nState")[0].splitlines()[-1])
            panel.get_by_role("button").first.click()
            expect(panel).to_have_count(0)
        return names


@pytest.fixture
def timeline(page: Page) -> Timeline:
    return Timeline(page)


def _bars(png: bytes) -> list[tuple[float, float]]:
    """Where to click: the middle of each bar of a timeline whose tasks are all completed."""
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    is_bar = np.abs(pixels - COMPLETED_RGB).sum(axis=2) < 60
    found: list[tuple[int, int, int]] = []
    for y in range(0, len(pixels) - EDGE_PX, 4):
        steps = np.diff(np.r_[0, is_bar[y].astype(int), 0])
        for left, right in zip(*(np.flatnonzero(steps == s) for s in (1, -1)), strict=True):
            known = any(
                y - top < LANE_PX and left < last and right > first for first, last, top in found
            )
            if right - left >= BAR_PX and not known:
                found.append((int(left), int(right), y))
    return [((left + right) / 2, y + LANE_PX / 3) for left, right, y in found]
