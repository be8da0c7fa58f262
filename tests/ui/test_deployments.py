"""What a person finds under Deployments: all of them, and the benchmark of every night."""

import re
from datetime import UTC, datetime

import pytest
from playwright.sync_api import expect

from deployments.stack import deployment_names

pytestmark = pytest.mark.ui

BENCHMARK = "benchmark-startup/benchmark-startup"
UIS = {"v1": "", "v2": "/v2"}
LINK = "a[href*='/deployments/deployment/']"


@pytest.mark.parametrize("ui", UIS)
def test_the_page_of_deployments_lists_each_and_the_time_of_the_nightly_one(ui, page, shoot):
    names = deployment_names()
    page.goto(f"{UIS[ui]}/deployments")
    listed = page.locator(f"table {LINK}")
    expect(listed).to_have_count(len(names))
    assert set(listed.all_inner_texts()) == names
    row = page.get_by_role("row").filter(has=page.locator(LINK, has_text="benchmark-startup"))
    expect(row).to_contain_text("At 03:00 AM")
    expect(row).to_contain_text("Ready")
    shoot(f"deployments-{ui}")


def test_the_page_of_the_benchmark_shows_its_schedule_and_the_next_runs(page, shoot):
    page.goto("/deployments")
    page.locator(LINK, has_text="benchmark-startup").click()
    expect(page.get_by_text("nightly", exact=True)).to_be_visible()
    expect(page.get_by_role("switch")).to_be_checked()
    page.get_by_text("Upcoming", exact=True).click()
    coming = page.get_by_text(re.compile(r"Scheduled for \d{4}/\d\d/\d\d 03:00:00 AM"))
    expect(coming).to_have_count(3)
    shoot("deployment-benchmark-startup")


def test_the_schedule_is_there_after_deploying_and_its_next_runs_are_at_three_utc(live):
    (schedule,) = live.deployment(BENCHMARK)["schedules"]
    assert schedule["slug"] == "nightly"
    assert schedule["active"] is True
    assert schedule["schedule"]["cron"] == "0 3 * * *"
    assert schedule["schedule"]["timezone"] == "UTC"
    coming = [run for run in live.runs_of(BENCHMARK) if run["state_type"] == "SCHEDULED"]
    times = [datetime.fromisoformat(run["expected_start_time"]) for run in coming]
    assert len(times) >= 3
    assert {(at.hour, at.minute, at.utcoffset().total_seconds()) for at in times} == {(3, 0, 0)}
    assert min(times) > datetime.now(UTC)
    assert len({at.date() for at in times}) == len(times)


def test_a_benchmark_triggered_while_one_runs_is_cancelled(live, page, shoot):
    refused = live.run(live.refused_id)
    assert refused["state_type"] == "CANCELLED"
    assert "concurrency limit" in refused["state"]["message"]
    assert not (live.folder / "other").exists()
    page.goto(f"/runs/flow-run/{live.refused_id}")
    expect(page.get_by_text("Cancelled", exact=True).first).to_be_visible()
    shoot("benchmark-refused")
