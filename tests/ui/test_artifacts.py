"""Artifacts of the benchmark, and of a run that trains, on light and on dark pages of both UIs."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

pytestmark = pytest.mark.ui

PICTURES = "img[src^='data:image/png']"
LEAST_PX = 800  # width of a picture, for what is written in it to be read
UIS = {"v1": "", "v2": "/v2"}


@pytest.fixture
def open_artifact(live, page):
    def open_it(key, ui="v1", run_id=None, height=900):
        page.set_viewport_size({"width": page.viewport_size["width"], "height": height})
        artifact = live.artifact(key, run_id or live.benchmark_id)
        page.goto(f"{UIS[ui]}/artifacts/artifact/{artifact['id']}")
        return artifact

    return open_it


def check_pictures(page, num):
    pictures = page.locator(PICTURES)
    expect(pictures).to_have_count(num)
    for picture in pictures.all():
        expect(picture).to_have_js_property("complete", True)
        assert picture.evaluate("image => image.naturalWidth") >= LEAST_PX


@pytest.mark.parametrize("ui", UIS)
def test_the_comparison_shows_its_table_and_loads_its_pictures(ui, open_artifact, page, shoot):
    open_artifact("benchmark-startup", ui)
    expect(page.get_by_role("heading", name="No verdict yet: cold, warm")).to_be_visible()
    table = page.locator("table").first
    for heading in (
        "scenario",
        "time to first step",
        "idle until epoch 2",
        "against history",
        "runs",
    ):
        expect(table).to_contain_text(heading)
    for scenario in ("cold", "warm"):
        row = table.get_by_role("row").filter(has_text=scenario)
        expect(row).to_have_count(1)
        expect(row).to_contain_text("0 of 1 runs before")
    check_pictures(page, 1)
    if ui == "v1":
        shoot("benchmark", page.locator(".artifact-data-view"), page.locator(PICTURES).first)


def test_the_links_of_the_comparison_lead_to_the_runs_of_its_scenarios(live, open_artifact, page):
    open_artifact("benchmark-startup")
    cells = page.locator("table").first.get_by_role("row")
    for scenario in ("cold", "warm"):
        links = cells.filter(has_text=scenario).get_by_role("link")
        expect(links).to_have_count(2)
        for link in links.all():
            run = live.run(link.get_attribute("href").rsplit("/", 1)[1])
            assert scenario in run["tags"]
            assert run["state_type"] == "COMPLETED"
    with page.context.expect_page() as opened:
        links.first.click()
    expect(opened.value.get_by_text("warm [", exact=False).first).to_be_visible()
    expect(opened.value.get_by_text("Completed", exact=True).first).to_be_visible()


@pytest.mark.parametrize("ui", UIS)
def test_the_table_of_startup_times_has_a_row_per_scenario(ui, open_artifact, page, shoot):
    open_artifact("startup-times", ui)
    rows = page.get_by_role("row")
    expect(rows).to_have_count(3)
    for row, scenario in zip(rows.all()[1:], ("cold", "warm"), strict=True):
        expect(row.get_by_role("cell").first).to_have_text(scenario)
        expect(row).to_contain_text(" s [")
    shoot(f"startup-times-{ui}")


def test_the_overhead_of_a_run_shows_its_pictures(live, open_artifact, page, shoot):
    run = live.subflows(live.benchmark_id)[0]
    open_artifact("overhead", run_id=run["id"], height=1700)
    check_pictures(page, 2)
    expect(page.get_by_role("row").filter(has_text="first step")).to_have_count(1)
    shoot("overhead")


@pytest.fixture
def training_id(live):
    """A run that trains until the test is over, and then is gone: other tests count runs."""
    number = live.deployment("train-burgers/train-burgers")["id"]
    endless = {"stages.operator.epochs": 100_000, "stages.operator.max_steps": None}
    body = {"parameters": {"config": str(live.config), "overrides": endless}}
    run_id = live.ask("POST", f"/deployments/{number}/create_flow_run", body)["id"]
    yield run_id
    state = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
    live.ask("POST", f"/flow_runs/{run_id}/set_state", state)
    live.wait_for_state(run_id, "CANCELLED")
    assert live.api.delete(f"/flow_runs/{run_id}").is_success


def test_startup_and_curves_of_a_run_can_be_seen_while_it_trains(
    live, training_id, open_artifact, page, shoot
):
    of_run = {"key": {"any_": ["training"]}, "flow_run_id": {"any_": [training_id]}}

    def has_curves():
        found = live.ask("POST", "/artifacts/filter", {"artifacts": of_run})
        return found and "data:image/png" in found[0]["data"]

    live.wait(has_curves)
    for ui in UIS:
        open_artifact("overhead", ui, training_id, height=1700)
        check_pictures(page, 1)
        expect(page.get_by_text("the first step waited for")).to_be_visible()
        expect(page.get_by_text("test nRMSE: not known before the end")).to_be_visible()
        shoot(f"overhead-while-it-trains-{ui}")
        open_artifact("training", ui, training_id, height=1300)
        check_pictures(page, 1)
        expect(page.get_by_role("heading", name=re.compile("epoch .* of 100000"))).to_be_visible()
        shoot(f"training-{ui}")
    assert live.run(training_id)["state_type"] == "RUNNING"


@pytest.mark.parametrize("ui", UIS)
def test_the_pictures_can_be_seen_on_dark_and_on_light_pages(ui, open_artifact, page, shoot):
    luminance = {}
    for theme in ("dark", "light"):
        page.goto(f"{UIS[ui]}/settings")
        choose_theme(page, ui, theme)
        open_artifact("benchmark-startup", ui, height=2600)
        check_pictures(page, 1)
        luminance[theme] = page_luminance(page)
        for picture in page.locator(PICTURES).all():
            check_is_seen(picture)
        shoot(f"benchmark-startup-{ui}-{theme}")
    assert luminance["dark"] < 0.25
    assert luminance["light"] > 0.75


def choose_theme(page, ui, theme):
    if ui == "v2":
        page.locator(f"label[for={theme}]").click()
    else:
        switch = page.get_by_role("switch").first
        expect(switch).to_be_visible()
        if (switch.get_attribute("aria-checked") == "true") != (theme == "dark"):
            switch.click()
    expect(page.locator("html")).to_contain_class(theme)


def page_luminance(page):
    """Of the page beside the text, 0 black to 1 white."""
    spot = {"x": page.viewport_size["width"] - 24, "y": 320, "width": 16, "height": 16}
    png = page.screenshot(clip=spot)
    return float(np.asarray(Image.open(io.BytesIO(png)).convert("L")).mean() / 255)


def check_is_seen(picture):
    """What stands on the page is the picture, not dimmed, inverted or empty."""
    picture.scroll_into_view_if_needed()
    shown = Image.open(io.BytesIO(picture.screenshot())).convert("RGB")
    source = base64.b64decode(picture.get_attribute("src").partition(",")[2])
    drawn = Image.open(io.BytesIO(source)).convert("RGB").resize(shown.size)
    difference = np.abs(np.asarray(shown).astype(int) - np.asarray(drawn).astype(int))
    assert difference.mean() < 8
    grey = np.asarray(shown.convert("L"))
    assert np.percentile(grey, 99.5) - np.percentile(grey, 10) > 120  # its text on its ground
