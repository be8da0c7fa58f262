"""The object store slowed down from outside: the benchmark fails, and its page says why."""

import re

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.ui


def test_a_slowed_object_store_is_worse_download_and_fails_the_run(live, slowed_id, page, shoot):
    run = live.wait_for_state(slowed_id)
    assert run["state_type"] == "FAILED"
    assert "cold: worse: download" in run["state"]["message"]
    artifact = live.artifact("benchmark-startup", run["id"])
    page.goto(f"/artifacts/artifact/{artifact['id']}")
    expect(page.get_by_role("heading", name="Worse: cold")).to_be_visible()
    for figure in ("TTFS", "idle"):
        line = re.compile(rf"cold: worse: download [^;]* s; {figure} ")
        expect(page.get_by_text(line)).to_be_visible()
    shoot("slow-store")
