"""What `deployments/team/` starts, against Prefect, the code and itself; no engine runs."""

import os
import re
import shutil
import subprocess

import pytest
import yaml
from prefect.events.schemas.automations import AutomationCore as Automation
from prefect.settings import Settings
from prefect.settings.legacy import _get_settings_fields

from deployments.database import CONNECTION_URL, POOL
from deployments.layout import LOGIN, PROJECT_DIR, Stack, read_env
from tests.live import free_ports
from tests.team import MAX_CONNECTIONS, SETTINGS

FOLDER = PROJECT_DIR / "deployments" / "team"
SECRETS = {"PREFECT_LOGIN", "POSTGRES_PASSWORD", "REDIS_PASSWORD"}
SERVERS = ("server-1", "server-2")
OF_REDIS = re.compile(r"PREFECT_REDIS_(MESSAGING|WORKER_CLEANUP_QUEUE)_URL")
# What Prefect's chart sets itself where the services have a deployment of their own.
OF_CHART = re.compile(r"PREFECT_SERVER_(EVENTS_|UI_API_URL)")
# The keys of Prefect's chart `prefect-server` that are used, as its values.yaml lays them out.
KEYS = {
    *("global.prefect.image.prefectTag", "global.prefect.env", "server.replicaCount"),
    *("server.basicAuth.enabled", "server.basicAuth.existingSecret"),
    *("server.uiConfig.prefectUiApiUrl", "server.livenessProbe.enabled"),
    *("server.livenessProbe.config.initialDelaySeconds", "server.readinessProbe.enabled"),
    *("backgroundServices.runAsSeparateDeployment", "secret.create", "redis.enabled"),
    *("postgresql.enabled", "postgresql.auth.existingSecret"),
    *("postgresql.primary.persistence.enabled", "postgresql.primary.extendedConfiguration"),
}


def load(name):
    return yaml.safe_load((FOLDER / name).read_text())


@pytest.fixture(scope="module")
def services():
    return load("compose.yaml")["services"]


def test_the_settings_are_prefects_and_those_of_other_servers_of_the_project(monkeypatch, services):
    given = read_env(SETTINGS)
    names = {*given, *services["server-1"]["environment"]}
    unknown = names - _get_settings_fields(Settings).keys()
    assert all(OF_REDIS.fullmatch(name) for name in unknown), unknown
    assert given.items() >= POOL.items()
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    of_stack = Stack.find().prefect_env()
    shared = {name for name in of_stack if name.startswith("PREFECT_SERVER_")}
    other = "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"  # in files, which one server alone can see
    assert given.items() >= {(name, of_stack[name]) for name in shared - {other}}
    kept_in_memory = {name: value for name, value in given.items() if "memory" in value}
    assert kept_in_memory == {}


def test_both_servers_and_the_services_have_the_same_settings_and_start_one_by_one(services):
    assert services.keys() == {"postgres", "redis", *SERVERS, "services", "proxy"}
    for name in (*SERVERS, "services"):
        assert services[name]["env_file"] == SETTINGS.name
        assert services[name]["environment"] == services["server-1"]["environment"]
        assert services[name]["build"]["args"]["EXTRAS"] == "team"
    assert ["--no-services" in services[name]["command"] for name in SERVERS] == [True, True]
    assert services["services"]["command"] == ["prefect", "server", "services", "start"]
    assert services["server-1"]["depends_on"].keys() == {"postgres", "redis"}
    for name in ("server-2", "services"):
        assert services[name]["depends_on"] == {"server-1": {"condition": "service_healthy"}}
    for service in services.values():
        for other in service.get("depends_on", {}):
            assert "test" in services[other]["healthcheck"]


def test_the_port_is_open_to_this_machine_alone_and_every_secret_is_asked_for(services):
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports == ["127.0.0.1:4200:4200"]
    text = (FOLDER / "compose.yaml").read_text()
    assert set(re.findall(r"\$\{(\w+):\?\}", text)) == SECRETS
    env = services["server-1"]["environment"]
    assert env[LOGIN] == "${PREFECT_LOGIN:?}"
    for name in (CONNECTION_URL, *filter(re.compile("REDIS|DOCKET").search, env)):
        assert "PASSWORD:?}" in env[name]
    for folder in ("team", "container"):
        ignored = ["git", "check-ignore", "-q", f"deployments/{folder}/.env"]
        assert subprocess.run(ignored, cwd=PROJECT_DIR).returncode == 0


def test_the_database_takes_the_connections_of_all_and_the_proxy_leads_to_both_servers(services):
    num = sum(int(POOL[name]) for name in POOL if name.endswith(("POOL_SIZE", "OVERFLOW")))
    allowed = int(re.search(r"max_connections=(\d+)", str(services["postgres"]["command"]))[1])
    in_cluster = load("helm-values.yaml")["postgresql"]["primary"]["extendedConfiguration"]
    assert allowed == MAX_CONNECTIONS == int(in_cluster.split("=")[1]) > num * 3
    proxy = (FOLDER / "nginx.conf").read_text()
    assert re.findall(r"server (server-\d:4200);", proxy) == [f"{name}:4200" for name in SERVERS]
    assert "./nginx.conf:" in services["proxy"]["volumes"][0]
    assert "proxy_set_header Upgrade $http_upgrade;" in proxy  # for the streams of events


def test_the_values_for_kubernetes_are_of_the_chart_and_have_the_same_settings():
    values = load("helm-values.yaml")

    def keys(tree, before=""):
        for key, value in tree.items():
            path = f"{before}{key}"
            yield from keys(value, f"{path}.") if isinstance(value, dict) else (path,)

    assert set(keys(values)) == KEYS
    env = values["global"]["prefect"]["env"]
    given = {one["name"]: one["value"] for one in env if "value" in one}
    wanted = {k: v for k, v in read_env(SETTINGS).items() if not OF_CHART.match(k)}
    assert given.items() >= wanted.items()
    names = [one["name"] for one in env]
    for one in env:  # Kubernetes fills in variables that stand further up alone
        for used in re.findall(r"\$\((\w+)\)", one.get("value", "")):
            assert names.index(used) < names.index(one["name"])
    assert values["server"]["replicaCount"] == 2
    lock = (PROJECT_DIR / "constraints.txt").read_text()
    tag = values["global"]["prefect"]["image"]["prefectTag"].partition("-")[0]
    assert f"\nprefect=={tag}\n" in lock


def test_the_services_pass_docker_compose():
    compose = shutil.which("docker-compose")
    if not compose:
        pytest.skip("no docker-compose here")
    env = {"PATH": os.environ["PATH"], **dict.fromkeys(SECRETS, "x")}
    quiet = {"env": env, "capture_output": True, "text": True}
    version = subprocess.run([compose, "version", "--short"], **quiet).stdout.strip("v\n")
    if version.startswith("1."):
        pytest.skip(f"docker-compose {version} knows an older format")
    command = [compose, "-f", FOLDER / "compose.yaml", "config", "--quiet"]
    done = subprocess.run(command, **quiet)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_proxys_file_passes_nginx(tmp_path):
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if not nginx:
        pytest.skip("no nginx here: `apt-get install nginx-light`")
    text = (FOLDER / "nginx.conf").read_text()
    names = re.sub(r"server-\d:", "127.0.0.1:", text)  # whose addresses it looks up
    names = names.replace("listen 4200", f"listen {free_ports(1)[0]}")  # it listens to test that
    config = tmp_path / "nginx.conf"
    config.write_text(f"pid {tmp_path}/pid; events {{}}\nhttp {{\n{names}\n}}\n")
    command = [nginx, "-t", "-q", "-c", config, "-p", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_run_is_lost_once_several_of_its_heartbeats_are_missing():
    lost = Automation.model_validate(load("lost-runs.yaml"))
    beats = Settings().flows.heartbeat_frequency
    assert lost.trigger.posture == "Proactive"
    assert lost.trigger.within.total_seconds() > 3 * beats
    assert lost.trigger.after == {"prefect.flow-run.heartbeat"}
    ends = {f"prefect.flow-run.{name}" for name in ("Completed", "Failed", "Cancelled", "Crashed")}
    assert lost.trigger.expect == lost.trigger.after | ends
    assert [action.state for action in lost.actions] == ["CRASHED"]
