"""A team's server: two servers, their services, PostgreSQL, Redis and a login; and its files."""

import sys

import httpx
import pytest

from deployments import deploy, follow, servers
from deployments import prefect_api as api
from deployments.layout import StackError
from deployments.servers import LoginRefused
from tests.live import wait_until
from tests.team import POOL, deploy_light, missing, serving_team

NUMBER = 7


@pytest.fixture(scope="module")
def team(tmp_path_factory):
    if reason := missing():
        pytest.skip(reason)
    # The pages of the UI, which each server makes of its own as it starts, are seen in tests/ui.
    quick = {"PREFECT_SERVER_UI_ENABLED": "false"}
    with serving_team(tmp_path_factory.mktemp("team"), **quick) as team:
        yield team


@pytest.fixture(scope="module")
def listening(team, tmp_path_factory):
    """The deployment of a light flow, once a worker at the second server is ready and listens."""
    folder = tmp_path_factory.mktemp("worker")
    with team.client(0) as client:
        deployment = deploy_light(client)
    env = {**team.client_env(1), "PREFECT_HOME": str(folder), "PREFECT_WORKER_QUERY_SECONDS": "600"}
    command = [sys.executable, "-m", "deployments.cli.app", "worker", "--pool", POOL]
    command += ["--name", "gpu-1"]
    team.processes.start("worker", command, env=env, cwd=folder)
    log = team.processes.log_path("worker")
    for said in ("ready at", "listening for scheduled runs"):
        wait_until(lambda words=said: words in log.read_text(), 120, 0.1)
    return deployment


def test_a_run_created_at_one_server_is_heard_by_a_worker_at_the_other(team, listening, tmp_path):
    parameters = {"number": NUMBER, "folder": str(tmp_path)}
    with team.client(0) as first, team.client(1) as second:
        runs = [api.create_run(first, listening, parameters) for _ in range(2)]
        ended = ("COMPLETED", "FAILED", "CRASHED")
        # The worker takes one at a time and polls every ten minutes.
        for run_id in runs:
            wait_until(lambda i=run_id: api.read_run(second, i)["state"]["type"] in ended, 120, 0.2)
            run = api.read_run(second, run_id)
            said = f"{run['state']['message']} {team.processes.log_tail('worker')}"
            assert run["state"]["type"] == "COMPLETED", said
    lines: list[str] = []
    seen = follow.follow(team.at(1), runs[1], lines.append)  # of `ups follow`
    assert seen["state"]["type"] == "COMPLETED"
    assert any("2 solve" in line and "Completed" in line for line in lines)
    with pytest.raises(StackError, match="another login .*: set PREFECT_API_AUTH_STRING or"):
        follow.follow(team.at(0, "admin:no"), runs[1], lines.append)
    begun = [line.split() for line in (tmp_path / "begun").read_text().splitlines()]
    assert sorted(run_id for run_id, *_ in begun) == sorted(runs)
    assert {start for *_, start in begun} == {"warm"}


@pytest.mark.parametrize(
    ("login", "said"), [("", "it wants a login"), ("admin:no", "it refuses this login")]
)
def test_without_the_login_both_servers_refuse_and_the_remedy_is_one_line(
    team, monkeypatch, login, said
):
    for index, url in enumerate(team.urls):
        assert httpx.post(f"{url}/work_pools/filter", json={}).status_code == 401
        server = team.at(index, login)
        monkeypatch.setattr(deploy, "named_server", lambda s=server: s)
        with pytest.raises(StackError) as caught:
            deploy.deploy(POOL)
        remedy = "set PREFECT_API_AUTH_STRING (user:password) or PREFECT_API_KEY"
        assert str(caught.value) == f"{url}: {said} (HTTP 401): {remedy}"
        monkeypatch.setattr(servers, "named_server", lambda s=server: s)
        with pytest.raises(LoginRefused, match=f"^{url}: {said} "):
            servers.check_login()  # of the worker


def test_a_worker_that_is_stopped_leaves_no_run_that_seems_to_go_on(team, listening, tmp_path):
    parameters = {"number": NUMBER, "folder": str(tmp_path), "pause_s": 60}
    with team.client(0) as client:
        run_id = api.create_run(client, listening, parameters)
        wait_until((tmp_path / "begun").exists, 60, 0.1)
        assert team.processes.stop("worker") == "stopped"
        state = api.read_run(client, run_id)["state"]
    by_itself = "Execution was aborted by Python system exit call."  # where it is the faster
    assert state["type"] == "CRASHED"
    assert state["message"] in ("Its worker gpu-1 was stopped.", by_itself)
