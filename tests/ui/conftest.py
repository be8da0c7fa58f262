"""A stack of this folder's own with a small benchmark on it, and a headless browser to look at it.

With UPS_TEST_TEAM=1 the stack has the first of a team's two servers (`tests/team.py`), and the
browser looks at the second, with the login.

What a test saw lies in `.ui/` afterwards; of a failed test its last view, as `failed-<test>.png`.
"""

from __future__ import annotations

import functools
import io
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from deployments.layout import PROJECT_DIR
from tests.live import LiveStack
from tests.team import as_server_of, env_of_stack_on, serving_team
from ups.config import dump_config, load_config
from ups.startup.measure.scenarios import BY_NAME, overrides_of

SHOTS = PROJECT_DIR / ".ui"
FLAGS = [
    *("--disable-gpu", "--enable-unsafe-swiftshader"),  # WebGL draws the timeline, in software
    *("--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
WIDTH, HEIGHT = 1440, 900
BENCHMARK = {"scenarios": ["cold", "warm"], "repeats": 2}
NUM_TRAJECTORIES = 8
COMPLETED_RGB = (34, 160, 80)  # of a bar in the timeline, in both UIs
BAR_PX, LANE_PX = 6, 24  # a bar is at least that wide; two below each other are that far apart
NAMES_S = 200  # that all bars may take to be clicked, beside other jobs, too
EDGE_PX = 25  # of the timeline: the band of the run's own states


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
    new_stack: Callable[..., AbstractContextManager[LiveStack]],
    examples_that_need: Callable[[str], dict[str, str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[LiveStack]:
    """With a benchmark that ended, one refused while it ran, and a tiny config for its data."""
    folder, examples = tmp_path_factory.mktemp("ui"), examples_that_need("a stack for minutes")
    with ExitStack() as started:
        if os.environ.get("UPS_TEST_TEAM"):
            team = started.enter_context(serving_team(tmp_path_factory.mktemp("team")))
            live = started.enter_context(new_stack(folder, examples, **env_of_stack_on(team)))
            as_server_of(live, team)
            live.pages_url = team.urls[1].removesuffix("/api")
        else:
            live = started.enter_context(new_stack(folder, examples))
        done = live.ups("up")
        assert done.returncode == 0, done.stderr
        _run_benchmark(live)
        live.config = _write_config(folder)
        yield live


def _run_benchmark(live: LiveStack) -> None:
    """The example of `ups benchmark`, made small, with its figures as JSON."""
    live.means["3"] = str(BENCHMARK["repeats"])
    small = [f"{name}={json.dumps(value)}" for name, value in _small(live).items()]
    options = [word for value in small for word in ("-p", value)]
    with live.start(*live.words("ups benchmark"), "--json", *options) as process:
        live.benchmark_id = _run_id(process)
        live.wait(lambda: live.run(live.benchmark_id)["state_type"] not in ("SCHEDULED", "PENDING"))
        live.refused_id = _trigger_benchmark(live, folder=str(live.folder / "other"))
        output, errors = process.communicate()
    assert process.returncode == 0, errors
    comparison = json.loads(output)
    assert comparison["record"]["flow_run_id"] == live.benchmark_id
    num_runs = len(BENCHMARK["scenarios"]) * BENCHMARK["repeats"]
    assert f"run {num_runs} of {num_runs}: " in errors


def _small(live: LiveStack) -> dict[str, Any]:
    """Parameters of a benchmark to wait for; its history is that of this stack."""
    return {
        "num_trajectories": NUM_TRAJECTORIES,
        "folder": str(live.folder / "benchmarks"),
        "thresholds": {"least_runs": 1},
    }


def _trigger_benchmark(live: LiveStack, **parameters: Any) -> str:
    number = live.deployment("benchmark-startup/benchmark-startup")["id"]
    body = {"parameters": {**BENCHMARK, **_small(live), **parameters}}
    return live.ask("POST", f"/deployments/{number}/create_flow_run", body)["id"]


@pytest.fixture
def trigger_benchmark(live: LiveStack) -> Callable[..., str]:
    """`trigger_benchmark(**parameters)`: the id of another small one's run."""
    return functools.partial(_trigger_benchmark, live)


def _run_id(process: subprocess.Popen[str]) -> str:
    """Of the run that the process says it has started."""
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"/runs/flow-run/([0-9a-f-]{36})", line):
            return found[1]
    pytest.fail(f"no run was started: {process.communicate()[0]}")


def _write_config(folder: Path) -> Path:
    """A config like the benchmark's, on the objects that it has made."""
    overrides = overrides_of(BY_NAME["cold"], folder, NUM_TRAJECTORIES)
    path = folder / "tiny.yaml"
    path.write_text(dump_config(load_config("benchmark", {**overrides, "name": "tiny"})))
    return path


@pytest.fixture
def page(browser: Browser, live: LiveStack) -> Iterator[Page]:
    """A page in a context of its own, which reaches the stack alone; times are shown in UTC."""
    context = browser.new_context(
        base_url=live.pages_url,
        viewport={"width": WIDTH, "height": HEIGHT},
        timezone_id="UTC",
        locale="en-US",
        reduced_motion="reduce",
    )
    # Links in artifacts lead to the server that the run knows.
    ours = "|".join(re.escape(url) for url in {live.pages_url, live.stack.ui_url})
    elsewhere = re.compile(rf"^(?!({ours})/)https?://")
    if login := live.stack.login:  # as the page of the login keeps it
        context.add_init_script(f"localStorage['prefect-password'] = btoa({json.dumps(login)})")
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
        """What the panel says that opens when a bar is clicked; in the first UI.

        The page lays its bars out anew whenever it asks the server, in other rows: a click that
        opens nothing starts it over.
        """
        panel, found = self.page.locator(".flow-run-graph-selection-panel"), {}
        deadline = time.monotonic() + NAMES_S
        while len(found) < num and time.monotonic() < deadline:
            for x, y in self.bars(num):
                self.canvas.click(position={"x": x, "y": y})
                try:
                    expect(panel).to_contain_text("Duration", timeout=3000)
                except AssertionError:
                    self.page.reload()
                    break
                name, _, rest = panel.inner_text().partition("\nState")
                found[rest.partition("Run ID\n")[2][:36]] = name.splitlines()[-1]
                panel.get_by_role("button").first.click()
                expect(panel).to_have_count(0)
        return list(found.values())


@pytest.fixture
def timeline(page: Page) -> Timeline:
    return Timeline(page)


def _bars(png: bytes) -> list[tuple[float, float]]:
    """Where to click each bar of a timeline whose tasks are all completed: near its right end.

    At the left end of a subflow's bar there is the arrow that unfolds it.
    """
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
    return [(right - min((right - left) / 2, 8), y + LANE_PX / 3) for left, right, y in found]
