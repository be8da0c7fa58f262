"""The pages of runs: their timelines, of a benchmark and of a training."""

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.ui

UIS = {"v1": "", "v2": "/v2"}


def test_the_timeline_of_a_benchmark_shows_its_tasks_and_its_runs(live, page, shoot, timeline):
    tasks = [task["name"] for task in live.task_runs(live.benchmark_id)]
    runs = [run["name"] for run in live.subflows(live.benchmark_id)]
    timeline.open(live.benchmark_id)
    shown = timeline.names(len(tasks) + len(runs))
    assert sorted(shown) == sorted(tasks + runs)
    assert {name.split()[0] for name in shown} >= {"1", "2", "3", "5"}
    assert sum("cold" in run for run in runs) == 2
    expect(page.get_by_text("cold, warm × 2", exact=True)).to_be_visible()
    shoot("benchmark-run", page.locator("header").first, page.locator("canvas"))


def test_the_timeline_of_a_training_shows_its_numbered_phases(live, page, shoot, timeline):
    run = live.subflows(live.benchmark_id)[0]
    tasks = [task["name"] for task in live.task_runs(run["id"])]
    timeline.open(run["id"])
    shown = timeline.names(len(tasks))
    assert sorted(shown) == sorted(tasks)
    assert {name.split()[0] for name in shown} == {"0", "1", "2", "3", "4", "5", "6"}
    shoot("train-run")


@pytest.mark.parametrize("ui", UIS)
def test_the_page_of_a_benchmark_lists_its_artifacts(ui, live, page, shoot, timeline):
    num = len(live.task_runs(live.benchmark_id)) + len(live.subflows(live.benchmark_id))
    timeline.open(live.benchmark_id, UIS[ui])
    assert len(timeline.bars(num)) == num
    page.set_viewport_size({"width": 1200, "height": 1200})  # what is further down is not drawn
    page.locator("[role=tab], .p-tab").filter(has_text="Artifacts").first.click()
    for key in ("benchmark-startup", "startup-times", "startup-criteria"):
        expect(page.get_by_text(key, exact=True).last).to_be_visible()
    shoot(f"benchmark-run-artifacts-{ui}")
