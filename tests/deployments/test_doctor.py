"""What `ups doctor` says; `test_runs` has it look at a stack that runs."""

import functools
import json
import os
import re
import subprocess
from types import SimpleNamespace

import boto3
import httpx
import pytest
from botocore.exceptions import ClientError
from prefect.settings.models.api import APISettings
from typer.testing import CliRunner

from deployments.cli.app import app
from deployments.doctor import machine, server, store
from deployments.doctor.findings import Findings
from deployments.doctor.server import _named_server as named_server
from deployments.layout import Stack
from deployments.servers import LoginRefused, NamedServer, ServerFault, ask_for_pools
from deployments.stack import PARTS, deployment_names
from tests.live import free_ports
from ups.machine.host import versions


@pytest.fixture(autouse=True)
def bare(tmp_path, monkeypatch):
    """A shell that names no server and no store, and a stack that was never started."""
    for name in [n for n in os.environ if n.startswith(("AWS_", "PREFECT_", "UPS_"))]:
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("UPS_STACK_DIR", str(tmp_path / ".stack"))
    monkeypatch.setattr(server, "_named_server", lambda _: None)


@pytest.fixture
def stack():
    prefect_port, s3_port = free_ports(2)
    return Stack.find(prefect_port=prefect_port, s3_port=s3_port)


def of(findings, group):
    return {one.name: one for one in findings if one.group == group}


def doctor(stack, *options):
    ports = ["--prefect-port", str(stack.prefect_port), "--s3-port", str(stack.s3_port)]
    done = CliRunner().invoke(app, ["doctor", *ports, *options], env={"COLUMNS": "300"})
    return done.exit_code, done.stdout


def test_without_a_stack_nothing_is_broken_started_or_written(stack, monkeypatch):
    def refuse(command, *_, **__):
        assert command[0] == "git", command
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "Popen", refuse)
    code, output = doctor(stack, "--json")
    found = json.loads(output)
    assert (code, found["well"]) == (0, True), output
    groups = dict.fromkeys(one["group"] for one in found["findings"])
    assert list(groups) == [
        "server", "pool", "worker", "store", "credentials", "disk", "GPU", "versions", "ports",
    ]  # fmt: skip
    assert not stack.folder.exists()
    assert "– this machine's" in doctor(stack)[1]


def test_a_port_that_is_taken_is_a_fault_with_the_variable_that_changes_it(stack, busy_port):
    taken = Stack.find(prefect_port=stack.prefect_port, s3_port=busy_port)
    code, output = doctor(taken)
    (line,) = [line for line in output.splitlines() if f"✗ {busy_port}" in line]
    assert (code, "UPS_S3_PORT" in line) == (1, True), output
    assert output.splitlines()[-1].endswith(
        "1 fault, 0 warnings, " + output.split(", ")[-1].strip()
    )
    free = machine.examine_ports(stack, server_answers=False)
    assert {one.status for one in free} == {"ok"}
    busy = Stack.find(prefect_port=busy_port, s3_port=stack.s3_port)
    own = machine.examine_ports(busy, server_answers=True)[0]  # a person's own server
    assert (own.status, "use it as it is" in own.remedy) == ("warn", True)


def api(pools, deployments, workers=(), status=200):
    """A client whose server answers so."""

    def answer(request):
        path = request.url.path.removeprefix("/api")
        if path == "/work_pools/filter":
            return httpx.Response(status, json=pools)
        if path == "/deployments/filter":
            return httpx.Response(200, json=deployments)
        if path.endswith("/workers/filter"):
            own = path.split("/")[2] == "local"
            return httpx.Response(200, json=list(workers) if own else [])
        return httpx.Response(404)

    return httpx.Client(base_url="http://x/api", transport=httpx.MockTransport(answer))


def pool(name, **changes):
    return {"name": name, "type": "process", "is_paused": False, **changes}


def deployments(pool_name="local"):
    return [{"name": name, "work_pool_name": pool_name} for name in deployment_names()]


def pools_of(client, is_own=True):
    pools = ask_for_pools(client)
    findings = Findings("pool")
    server._examine_pools(server.Server("http://x/api", is_own, client, pools), findings)
    return of(findings, "pool")


def test_pools_are_looked_at_that_deployments_go_to():
    well = pools_of(api([pool("local")], deployments()))
    assert [one.status for one in well.values()] == ["ok", "ok"]
    paused = pools_of(api([pool("local", is_paused=True)], deployments()))["local"]
    assert (paused.status, paused.remedy) == ("warn", "`prefect work-pool resume local`")
    missing = pools_of(api([pool("local")], deployments("other")))["other"]
    assert missing.status == "fault"
    assert missing.remedy == "`prefect work-pool create --type process other`"
    some = pools_of(api([pool("local")], deployments()[1:]))["deployments"]
    assert (some.status, deployments()[0]["name"] in some.what) == ("fault", True)
    queued = {**deployments("team")[0], "work_queue_name": "urgent"}
    queued["name"] += "-urgent"
    of_queue = pools_of(api([pool("team")], [queued]), is_own=False)
    assert [one.status for one in of_queue.values()] == ["ok", "ok"]
    foreign = pools_of(api([pool("local")], []), is_own=False)["deployments"]
    assert (foreign.status, foreign.remedy) == ("warn", "`ups deploy --pool NAME`")


def test_deployments_that_nobody_serves_are_named_and_a_persons_own_are_not():
    entrypoint = "flows/train_burgers.py:train_burgers"
    older = [
        {"name": "gpu", "work_pool_name": "gpu", "entrypoint": entrypoint},
        {"name": "rented", "work_pool_name": "local", "entrypoint": entrypoint},  # elsewhere
        {"name": "mine", "work_pool_name": "gpu", "entrypoint": entrypoint},
    ]
    pools = [pool("local"), pool("gpu")]
    found = pools_of(api(pools, [*deployments(), *older]))
    assert found.keys() == {"deployments", "local", "train-burgers/gpu"}
    unserved = found["train-burgers/gpu"]
    assert (unserved.status, "Not Ready" in unserved.what) == ("skip", True)
    assert "`prefect deployment delete train-burgers/gpu`" in unserved.remedy
    older[0]["entrypoint"] = "mine.py:mine"
    assert "train-burgers/gpu" not in pools_of(api(pools, [*deployments(), *older]))


def test_a_server_that_answers_is_looked_at_with_its_pools_and_workers(stack, running, monkeypatch):
    running("prefect-server", "worker", "object-store")
    workers = [{"name": "ups-local", "status": "ONLINE"}]
    answering = api([pool(name) for name in ("local", "gpu")], deployments(), workers)
    monkeypatch.setattr(Stack, "client", lambda *_: answering)
    found, answers = server.examine_servers(stack)
    assert answers
    assert {one.status for one in found} == {"ok", "warn", "skip"}
    in_no_folder = of(found, "server")["this shell"]  # has no prefect.toml
    assert f"export PREFECT_API_URL={stack.api_url}" in in_no_folder.remedy
    assert of(found, "worker")["local"].what == "ups-local online"
    assert answering.is_closed


@pytest.mark.parametrize(
    ("answer", "what", "remedy"),
    [
        (httpx.Response(401), "it wants a login", "PREFECT_API_AUTH_STRING"),
        (httpx.Response(404), "it answers HTTP 404", "ends with /api"),
        (httpx.Response(500), "it answers HTTP 500", "ask again in a minute"),
        (httpx.Response(200, text="<html>"), "is not Prefect's API", "ends with /api"),
        (httpx.ConnectError("refused"), "no answer (ConnectError: refused)", "prefect config view"),
    ],
)
def test_a_server_that_is_of_no_use_is_a_fault_with_the_next_move(answer, what, remedy):
    def respond(request):
        if isinstance(answer, Exception):
            raise answer
        return answer

    client = httpx.Client(base_url="http://x/api", transport=httpx.MockTransport(respond))
    with pytest.raises(ServerFault) as caught:
        ask_for_pools(client)
    assert what in caught.value.what
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (LoginRefused("it wants a login", "set it"), "http://x/api: it wants a login: set it"),
        (
            httpx.HTTPStatusError("", request=None, response=httpx.Response(500, text="oh")),
            "http://x/api: HTTP 500: oh: ask again in a minute",
        ),
        (httpx.ReadTimeout("slow"), r"http://x/api: no answer (ReadTimeout('slow')): start that"),
    ],
)
def test_what_a_named_server_does_wrong_is_said_with_its_address(fault, said):
    with (
        pytest.raises(ServerFault, match=re.escape(said)) as caught,
        NamedServer("http://x/api").asked(),
    ):
        raise fault
    assert isinstance(caught.value, LoginRefused) == isinstance(fault, LoginRefused)


@pytest.mark.parametrize(
    ("version", "status"), [(versions()["prefect"], "ok"), ("2.19.1", "warn"), (None, None)]
)
def test_a_server_of_another_version_is_said(version, status):
    answer = httpx.Response(404) if version is None else httpx.Response(200, json=version)
    findings = Findings("server")
    client = httpx.Client(base_url="http://x", transport=httpx.MockTransport(lambda _: answer))
    server._compare_versions(client, findings)
    assert [one.status for one in findings] == ([] if status is None else [status])


def test_settings_that_prefect_refuses_are_a_fault_without_their_values(monkeypatch):
    refused = functools.partial(APISettings.model_validate, {"request_timeout": "secret"})
    monkeypatch.setattr("prefect.settings.get_current_settings", refused)
    findings = Findings("server")
    assert named_server(findings) is None
    assert "request_timeout: Input should be a valid number" in findings[0].what
    assert (findings[0].status, "secret" in findings[0].text) == ("fault", False)


def test_a_named_server_that_does_not_answer_is_a_fault(stack, monkeypatch):
    (port,) = free_ports(1)
    url = f"http://me:secret@127.0.0.1:{port}/api"
    monkeypatch.setattr(server, "_named_server", lambda _: NamedServer(url))
    found, answers = server.examine_servers(stack)
    own, named = of(found, "server")["this machine's"], of(found, "server")["this shell's"]
    assert (own.status, named.status, answers) == ("skip", "fault", False)
    assert f"http://…@127.0.0.1:{port}/api" in named.what
    assert "secret" not in str(found)


@pytest.fixture
def running(monkeypatch):
    """`running("worker")`: only these parts of the stack have a process."""

    def only(*parts):
        assert set(parts) <= set(PARTS)
        process = SimpleNamespace(pid=77)
        names = dict.fromkeys(parts, process)
        monkeypatch.setattr("deployments.processes.Processes.running", lambda _, p: names.get(p))

    return only


def test_a_worker_that_died_is_a_fault_though_the_server_still_calls_it_online(stack, running):
    workers = [{"name": "ups-local", "status": "ONLINE"}]
    client = api([pool(name) for name in ("local", "gpu")], deployments(), workers)

    def look():
        findings = Findings("worker")
        seen = server.Server("http://x/api", True, client, ask_for_pools(client))
        server._examine_workers(seen, stack, findings)
        return of(findings, "worker")

    running("prefect-server", "worker")
    assert look()["local"].status == "ok"
    assert look()["gpu"].status == "skip"  # nobody asked for one
    running("prefect-server")
    dead = look()["local"]
    assert (dead.status, dead.remedy.startswith("`ups up` starts it")) == ("fault", True)


def test_a_part_without_the_others_is_a_fault(stack, running):
    running("worker")
    found = server.examine_servers(stack)[0]
    assert of(found, "server")["this machine's"].status == "fault"
    assert of(found, "worker")["local"].status == "fault"
    assert of(store.examine_stores(stack, None), "store")["this machine's"].status == "fault"


def test_the_store_of_the_shell_is_asked_with_the_keys_of_the_shell(stack, s3, monkeypatch):
    with s3.used():
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="mine")
        found = store.examine_stores(stack, None)
        named = of(found, "store")["this shell's"]
        assert (named.status, "mine" in named.what) == ("ok", True), named
        assert of(found, "credentials")["this shell's"].status == "ok"
        inside = of(store.examine_stores(stack, "mine"), "store")["this shell's"]
        assert (inside.status, "bucket mine can be listed" in inside.what) == ("ok", True)
        code, output = doctor(stack, "--bucket", "mine")
        assert (code, inside.what in output) == (0, True), output
        wrong = of(store.examine_stores(stack, "nowhere"), "store")["this shell's"]
        assert (wrong.status, "no such bucket" in wrong.what) == ("fault", True), wrong
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-that-is-long")
        refused = of(store.examine_stores(stack, None), "store")["this shell's"]
        assert (refused.status, "SignatureDoesNotMatch" in refused.what) == ("fault", True), refused
        assert "another-that-is-long" not in refused.text
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        half = of(store.examine_stores(stack, None), "credentials")["this shell's"]
        assert (half.status, half.remedy) == ("fault", "set AWS_SECRET_ACCESS_KEY")


@pytest.mark.parametrize(
    ("code", "status", "of_keys"),
    [("AccessDenied", "skip", "ok"), ("SignatureDoesNotMatch", "fault", None)],
)
def test_keys_for_one_bucket_are_no_fault_and_wrong_ones_are(
    code, status, of_keys, stack, monkeypatch
):
    def list_buckets():
        answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": 403}}
        raise ClientError(answer, "ListBuckets")

    meta = SimpleNamespace(endpoint_url="https://s3.example")
    client = SimpleNamespace(meta=meta, list_buckets=list_buckets)
    monkeypatch.setattr(store, "connect", lambda _: client)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    found = store.examine_stores(stack, None)
    assert of(found, "store")["this shell's"].status == status
    keys = of(found, "credentials").get("this shell's")
    assert (keys and keys.status) == of_keys
    assert ("--bucket" in of(found, "store")["this shell's"].remedy) == (status == "skip")


def test_a_store_that_is_not_there_is_a_fault(stack, monkeypatch):
    (port,) = free_ports(1)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    named = of(store.examine_stores(stack, None), "store")["this shell's"]
    assert (named.status, str(port) in named.what) == ("fault", True)


def test_keys_that_others_may_read_are_said(stack):
    def keys():
        return of(store.examine_stores(stack, None), "credentials")["this machine's"]

    assert keys().status == "skip"
    stack.store_env()
    assert keys().status == "ok"
    stack.env_file.chmod(0o644)
    assert (keys().status, keys().remedy) == ("warn", f"`chmod 600 {stack.env_file}`")
    stack.env_file.write_text("AWS_ACCESS_KEY_ID=a\n")
    assert (keys().status, "AWS_SECRET_ACCESS_KEY" in keys().what) == ("fault", True)


def test_a_folder_that_is_full_or_closed_is_a_fault(stack, monkeypatch, tmp_path):
    def found():
        return of(machine.examine_disk(stack), "disk")["stack"]

    assert found().status == "ok"
    for free, status in ((10**9, "warn"), (10**6, "fault")):
        usage = SimpleNamespace(free=free)
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda _, usage=usage: usage)
        assert found().status == status
    stack.folder.parent.mkdir(exist_ok=True)
    stack.folder.write_text("")
    assert (found().status, "is a file" in found().what) == ("fault", True)


def test_without_a_clone_it_says_what_wants_one(stack, monkeypatch):
    monkeypatch.setattr(machine, "is_clone", lambda: False)
    clone = of(machine.examine_versions(), "versions")["clone"]
    assert (clone.status, clone.remedy) == ("skip", "`git clone`")
    assert "stack" not in of(machine.examine_disk(stack), "disk")
