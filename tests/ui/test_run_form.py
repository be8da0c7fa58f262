"""A training that is started from the run form."""

import re

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.ui

TRAIN = "train-burgers/train-burgers"
LATENT_DIM = 24  # the config has 32


def test_a_run_from_the_form_completes_with_the_parameters_that_were_typed(live, page, shoot):
    page.goto("/deployments")
    page.locator("a[href*='/deployments/deployment/']", has_text="train-burgers").click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").click()

    field = page.locator(".schema-form-property")
    field.filter(has_text="config (Optional)").locator("textarea").fill(str(live.config))
    latent_dim = field.filter(has_text="latent_dim (Optional)")
    latent_dim.get_by_role("button", name="int", exact=True).click()
    latent_dim.locator("input").fill("0")
    page.get_by_role("button", name="Submit").click()
    refused = page.get_by_text("'latent_dim'. Failure reason: 0 is less than the minimum of 1")
    expect(refused.first).to_be_visible()
    latent_dim.locator("input").fill(str(LATENT_DIM))
    shoot("run-form")
    page.get_by_role("button", name="Submit").click()

    page.wait_for_url(re.compile(r"/deployments/deployment/[0-9a-f-]+(\?|$)"))
    (run,) = live.runs_of(TRAIN)
    ended = live.wait_for_state(run["id"])
    assert ended["state_type"] == "COMPLETED", ended["state"]["message"]
    assert ended["parameters"]["latent_dim"] == LATENT_DIM
    assert ended["parameters"]["config"] == str(live.config)

    page.reload()
    expect(page.get_by_text("1 Flow run", exact=True)).to_be_visible()
    expect(page.get_by_text("Completed", exact=True)).to_be_visible()
    page.get_by_role("link", name=ended["name"]).click()
    expect(page.get_by_text("Job Variables")).to_be_visible()  # the run's page is there
    page.get_by_text("Parameters", exact=True).click()
    expect(page.get_by_text(f'"latent_dim": {LATENT_DIM}')).to_be_visible()
    shoot("run-of-the-form")
