"""An existing server with a login, on PostgreSQL, and a store with keys of its own.

The server is a stack's, started with login and database; `ups deploy`, the worker and the run know
nothing of that stack but the address.
"""

import json
import os
import re
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from deployments import deploy, serve
from deployments.doctor.server import examine_servers
from deployments.follow import follow
from deployments.layout import BIN_DIR, PROJECT_DIR, Stack, StackError
from deployments.servers import NamedServer
from deployments.stack import up
from tests.documented import commands_run_by
from tests.team import DATABASE_PASSWORD as PASSWORD
from tests.team import find_initdb, serving_postgres
from ups.config import SPLITS, load_config
from ups.data.seed import seed

LOGIN = "admin:of the server"
RUN = "train-burgers/gpu-urgent"


@pytest.fixture(scope="module")
def postgres():
    if not find_initdb().is_file():
        pytest.skip("needs PostgreSQL's initdb: `apt-get install postgresql`")
    with serving_postgres() as postgres:
        yield postgres.url


@pytest.fixture(scope="module")
def live(new_stack, postgres, tmp_path_factory):
    secrets = {"PREFECT_SERVER_API_AUTH_STRING": LOGIN, "UPS_DATABASE_URL": postgres}
    with new_stack(tmp_path_factory.mktemp("live"), **secrets) as live:
        done = live.ups("up")
        assert done.returncode == 0, done.stdout + done.stderr
        yield live


@pytest.fixture(scope="module")
def elsewhere(live, tmp_path_factory):
    """`elsewhere("deploy", …)`: `ups` in a folder and with a stack of another machine."""
    folder = tmp_path_factory.mktemp("elsewhere")
    bare = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "AWS_", "UPS_"))}
    bare |= {"UPS_STACK_DIR": str(folder / ".stack"), "PREFECT_HOME": str(folder / "prefect")}
    bare |= {"PATH": f"{BIN_DIR}{os.pathsep}{os.environ['PATH']}"}  # as the lines of the docs do
    bare |= {"PYTHONPATH": str(PROJECT_DIR), "PREFECT_API_URL": live.stack.api_url}

    def ups(*arguments, login=LOGIN, **changes):
        env = {**bare, **({"PREFECT_API_AUTH_STRING": login} if login else {}), **changes}
        command = [sys.executable, "-m", "deployments.cli.app", *arguments]
        return subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True)

    ups.env = {**bare, "PREFECT_API_AUTH_STRING": LOGIN}
    return ups


def test_the_password_of_the_database_stands_in_no_command_line_log_or_open_file(live):
    assert httpx.post(f"{live.stack.api_url}/work_pools/filter", json={}).status_code == 401
    processes = [live.stack.processes.running(part) for part in ("prefect-server", "worker")]
    for secret in (PASSWORD, LOGIN):
        for process in processes:
            assert not any(secret in word for word in process.cmdline())
        assert not [
            log for log in live.folder.rglob("*.log") if secret in log.read_text(errors="replace")
        ]
    holding = [
        path
        for path in live.folder.rglob("*")
        if path.is_file() and path.stat().st_size < 1 << 20 and LOGIN in path.read_text("latin-1")
    ]
    assert {path.name for path in holding} == {"server.env", "prefect.toml"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in holding} == {0o600}
    assert PASSWORD not in processes[1].environ().get("UPS_DATABASE_URL", "")
    assert not any(PASSWORD in value for value in processes[1].environ().values())
    assert not list(live.folder.rglob("prefect.db"))  # nothing lies in SQLite


def test_later_commands_know_the_login_and_refuse_another(live, monkeypatch):
    monkeypatch.setenv("UPS_STACK_DIR", live.env["UPS_STACK_DIR"])
    later = Stack.find()  # of a shell that has none of the variables
    assert later == live.stack
    found = {one.group: one for one in examine_servers(later)[0] if one.name == "local"}
    assert (found["pool"].status, found["worker"].what) == ("ok", "ups-local online")
    with pytest.raises(StackError, match="no flow run 00000000 on "):
        follow(later, "00000000", print)
    for name in ("PREFECT_SERVER_API_AUTH_STRING", "UPS_DATABASE_URL"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "")
            with pytest.raises(StackError, match=f"than {name} says, or with none"):
                up(Stack.find(), print)
    with pytest.raises(StackError, match="PREFECT_SERVER_API_AUTH_STRING to the one that it was"):
        follow(replace(later, login="admin:no"), "0" * 8, print)


def test_a_shell_without_the_login_is_told_in_one_line(elsewhere):
    done = elsewhere("deploy", "--pool", "team", login=None)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "it wants a login (HTTP 401): set PREFECT_API_AUTH_STRING" in done.stderr


@pytest.mark.parametrize(
    ("server", "options", "expected"),
    [
        (None, {}, "no Prefect server is named"),
        ("http://127.0.0.1:9/api", {}, "no answer .ConnectError.*: start that server"),
        ("the stack's", {"login": "admin:no"}, r"it refuses this login \(HTTP 401\)"),
        ("the stack's", {"kind": "docker"}, "no image for the new pool team of type docker"),
        ("the stack's", {"names": ["x"]}, "no deployment 'x' in prefect.yaml"),
        ("the stack's", {}, "api goes to the pool local: give --pool local, or"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_made(live, monkeypatch, server, options, expected):
    login = {"PREFECT_API_AUTH_STRING": options.pop("login", LOGIN)}
    url = live.stack.api_url if server == "the stack's" else server
    monkeypatch.setattr(deploy, "named_server", lambda: url and NamedServer(url, login))
    with pytest.raises(StackError, match=expected):
        deploy.deploy("team", **options)
    assert {pool["name"] for pool in live.ask("POST", "/work_pools/filter", {})} == {"local"}


def test_what_cannot_be_finished_is_removed_again(live, monkeypatch):
    server = NamedServer(live.stack.api_url, {"PREFECT_API_AUTH_STRING": LOGIN})
    monkeypatch.setattr(deploy, "named_server", lambda: server)
    monkeypatch.setattr(deploy, "BIN_DIR", Path("/bin"))
    with pytest.raises(FileNotFoundError):
        deploy.deploy("team", names=["gpu"])
    assert {pool["name"] for pool in live.ask("POST", "/work_pools/filter", {})} == {"local"}


@pytest.mark.parametrize(
    ("pool", "queues", "expected"),
    [
        ("nowhere", [], "no pool nowhere at .*: `ups deploy --pool nowhere` makes it"),
        ("local", ["default", "x"], "no queue x in the pool local .*, expected one of default: "),
    ],
)
def test_a_worker_is_told_what_is_not_there(live, monkeypatch, pool, queues, expected):
    login = {"PREFECT_API_AUTH_STRING": LOGIN}
    monkeypatch.setattr(serve, "named_server", lambda: NamedServer(live.stack.api_url, login))
    with pytest.raises(StackError, match=expected):
        serve.find_served(pool, queues)
    assert serve.find_served("local", ["default"]).url == live.stack.api_url


def test_a_queue_has_deployments_of_its_own_and_else_prefect_yaml_says_how_many_run_at_once():
    plain = deploy._wanted(["gpu"], "team", "process", deploy.Changes())
    assert plain["train-burgers/gpu"]["work_pool"].keys() == {"name", "job_variables"}
    assert plain["train-burgers/gpu"]["concurrency_limit"]["limit"] == 1
    changed = deploy.Changes(queue="night", at_once=3)
    found = deploy._wanted(["rented"], "team", "process", changed)["train-burgers/rented-night"]
    assert found["work_pool"]["work_queue_name"] == "night"
    assert found["concurrency_limit"] == {"limit": 3, "collision_strategy": "ENQUEUE"}


@pytest.fixture(scope="module")
def deployed(elsewhere):
    queue = ("--queue", "urgent", "--priority", "1", "--at-once", "4")
    return elsewhere("deploy", "--pool", "team", "--name", "gpu", *queue)


def test_a_worker_elsewhere_trains_with_a_store_of_other_keys(
    live, elsewhere, deployed, s3, write_tiny, tmp_path
):
    assert deployed.returncode == 0, deployed.stderr
    assert "team, process, made" in deployed.stdout
    config = write_tiny(
        tmp_path / "tiny.yaml",
        runs_dir=str(tmp_path / "runs"),
        data__root=str(tmp_path / "staged"),
        data__sources={split: [{"key": f"team/{split}.h5"}] for split in SPLITS},
        data__generate__num_trajectories={"train": 4, "val": 2, "test": 2},
        training__latent_cache_dir=str(tmp_path / "cache"),
        stages__operator__epochs=1,
    )
    with s3.used():
        seed(load_config(str(config)), lambda *_: None)
    prefect = BIN_DIR / "prefect"
    run = [prefect, "deployment", "run", RUN, "-p", f"config={config}"]
    done = subprocess.run(run, env=elsewhere.env, capture_output=True, text=True)
    run_id = re.search(r"UUID: ([0-9a-f-]{36})", done.stdout)[1]
    start = [prefect, "worker", "start", "--pool", "team", "--work-queue", "urgent", "--run-once"]
    env = {**elsewhere.env, **s3.env}
    worker = subprocess.run(start, env=env, cwd=PROJECT_DIR, capture_output=True, text=True)
    ended = live.wait_for_state(run_id)
    assert ended["state_type"] == "COMPLETED", ended["state"]["message"] + worker.stderr
    assert (ended["work_pool_name"], ended["work_queue_name"]) == ("team", "urgent")
    followed = elsewhere("follow", run_id)
    assert followed.returncode == 0, followed.stderr
    for expected in ("4 train-operator", "time to first step", f"{live.stack.ui_url}/runs/flow-r"):
        assert expected in followed.stdout


@pytest.mark.parametrize(
    ("login", "expected"),
    [(LOGIN, "no flow run"), (None, "wants another login (HTTP 401): set PREFECT_API_AUTH_STRING")],
)
def test_what_cannot_be_followed_elsewhere_is_one_line(elsewhere, login, expected):
    done = elsewhere("follow", "136ff0b8-3c1d-4a52-9f0e-6f2f5b7e9a10", login=login)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert expected in done.stderr


@pytest.mark.usefixtures("deployed")
def test_deploying_again_changes_nothing_and_another_type_is_refused(live, monkeypatch):
    server = NamedServer(live.stack.api_url, {"PREFECT_API_AUTH_STRING": LOGIN})
    monkeypatch.setattr(deploy, "named_server", lambda: server)
    before = live.deployment(RUN)
    changes = deploy.Changes(queue="urgent", at_once=4)
    again = deploy.deploy("team", names=["gpu"], changes=changes)
    assert (again.made_pool, again.deployments) == (False, [RUN])
    after = live.deployment(RUN)
    of_the_worker = {"last_polled", "status"}  # which has gone: in a while it is not ready any more
    changed = {key for key in before if before[key] != after[key]}
    assert changed <= {"updated", *of_the_worker}
    assert after["global_concurrency_limit"]["limit"] == 4
    queues = live.ask("POST", "/work_pools/team/queues/filter", {})
    assert {q["name"]: q["priority"] for q in queues} == {"urgent": 1, "default": 2}
    other = "is of type process, expected docker: give --pool-type process"
    with pytest.raises(StackError, match=other):
        deploy.deploy("team", "docker", ["gpu"])


# Prefect's command line once for several lines: a process for each would import it again.
AS_LINES = """
import shlex, sys
from prefect.testing.cli import invoke_and_assert
for line in sys.argv[1:]:
    invoke_and_assert(shlex.split(line)[1:], expected_code=0, echo=False)
"""


def test_pools_and_deployments_of_containers_are_made_by_the_lines_of_the_page(
    live, elsewhere, s3, request
):
    command = [sys.executable, "-c", AS_LINES, *commands_run_by(request.node.nodeid)]
    env = {**elsewhere.env, **s3.env, "AWS_DEFAULT_REGION": "us-east-1"}
    done = subprocess.run(command, env=env, cwd=PROJECT_DIR, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("docker", "kubernetes"):
        made = live.deployment(f"train-burgers/{name}")
        assert made["job_variables"]["env"]["AWS_ENDPOINT_URL_S3"] == s3.endpoint_url
        pool = live.ask("GET", f"/work_pools/{made['work_pool_name']}")
        assert (pool["name"], pool["type"]) == (name, name)
        assert s3.secret_key not in json.dumps([made, pool])


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_a_pool_of_containers_is_made_and_its_deployment_names_the_image(live, elsewhere, kind):
    pool = f"pods-{kind}"
    options = ("--pool-type", kind, "--image", "NAME:TAG", "--name", "rented")
    done = elsewhere("deploy", "--pool", pool, *options)
    assert done.returncode == 0, done.stderr
    made = live.deployment("train-burgers/rented")
    live.api.delete(f"/deployments/{made['id']}").raise_for_status()  # the next one goes elsewhere
    assert (made["work_pool_name"], made["job_variables"]["image"]) == (pool, "NAME:TAG")
    assert "working_dir" not in made["job_variables"]
    assert live.ask("GET", f"/work_pools/{pool}")["type"] == kind
