"""The Dockerfile and the compose file against the code and Prefect; no engine runs."""

import fnmatch
import functools
import importlib.util
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from prefect.settings import Settings
from prefect.settings.legacy import _get_settings_fields

from deployments import stack, worker
from deployments.layout import BIN_DIR, PROJECT_DIR, WORKER_ENV, Stack
from ups.config import load_config

FOLDER = PROJECT_DIR / "deployments" / "container"
DOCKERFILE = FOLDER / "Dockerfile"
REQUIRED = re.compile(r"\$\{(\w+):\?\}")
USER = 1000
KEPT_BACK = (
    ".env",
    ".git/config",
    ".stack/env",
    "data/x.h5",
    "deployments/container/.env",
    "prefect.toml",
    "runs/x/log",
    "tests/conftest.py",
    "ups/__pycache__/x.pyc",
)


def load(name: str) -> dict:
    return yaml.safe_load((FOLDER / name).read_text())


def instructions() -> list[tuple[str, str]]:
    """Of all stages, in order: name and the rest, comments left out and lines joined."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line]


def last_stage() -> list[tuple[str, str]]:
    found = instructions()
    return found[max(i for i, (name, _) in enumerate(found) if name == "FROM") :]


def image_env() -> dict[str, str]:
    given = [rest for name, rest in last_stage() if name == "ENV"]
    return dict(pair.split("=", 1) for rest in given for pair in shlex.split(rest))


def copied(name: str) -> bool:
    """Whether the builder gets a path of the repository: the last rule that fits decides."""
    is_sent = True
    for line in (PROJECT_DIR / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        rule, keeps = line.removeprefix("!"), line.startswith("!")
        parts = Path(name).parts
        parents = ["/".join(parts[: i + 1]) for i in range(len(parts))]
        anywhere = rule.startswith("**/")
        seen = parts if anywhere else parents
        if any(fnmatch.fnmatchcase(part, rule.removeprefix("**/")) for part in seen):
            is_sent = keeps
    return is_sent


# ---- the image


def test_the_dockerfile_passes_hadolint():
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, "--no-color", DOCKERFILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_what_is_copied_is_tracked_and_reaches_the_builder_and_nothing_secret_does():
    sources = [
        source
        for name, rest in instructions()
        if name == "COPY" and "--from" not in rest
        for source in rest.split()[:-1]
    ]
    assert {"ups", "prefect.yaml", "constraints.txt"} <= set(sources)
    listed = subprocess.run(["git", "ls-files", *sources], cwd=PROJECT_DIR, capture_output=True)
    tracked = listed.stdout.decode().splitlines()
    assert {path.partition("/")[0] for path in tracked} == {s.partition("/")[0] for s in sources}
    assert [path for path in tracked if not copied(path)] == []
    assert [path for path in KEPT_BACK if copied(path)] == []


def test_all_packages_and_what_the_build_reads_are_in_the_image():
    built = tomllib.loads((PROJECT_DIR / "pyproject.toml").read_text())
    into = {s for n, r in last_stage() if n == "COPY" and "--from" not in r for s in r.split()[:-1]}
    wanted = built["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {*wanted, built["project"]["readme"], "pyproject.toml", "prefect.yaml"} <= into


def test_every_install_but_the_projects_own_follows_the_lock():
    installs = [rest for name, rest in instructions() if name == "RUN" and "uv pip install" in rest]
    assert len(installs) == 2
    with_dependencies = [rest for rest in installs if "--no-deps" not in rest]
    assert with_dependencies
    assert all("-c constraints.txt" in rest for rest in with_dependencies)
    assert all(
        re.search(r"uv==\d+\.\d+\.\d+ ", r)
        for n, r in instructions()
        if "pip install --no-cache-dir" in r
    )


@pytest.mark.parametrize(
    ("torch", "extras", "expected"),
    [
        ("cpu", "", "--torch-backend cpu"),
        ("cuda", "", ""),
        ("cuda", "wandb neuralop", "--extra wandb --extra neuralop"),
        ("rocm", "", None),
    ],
)
def test_the_variant_and_the_extras_reach_the_install(torch, extras, expected, tmp_path):
    [step] = [r for n, r in instructions() if n == "RUN" and "--torch-backend" in r]
    uv = tmp_path / "uv"
    uv.write_text('#!/bin/sh\necho "$@"\n')
    uv.chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "TORCH": torch, "EXTRAS": extras}
    command = ["sh", "-c", re.sub(r"--mount=\S+", "", step)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if expected is None:
        assert done.returncode == 1
        assert done.stderr == "TORCH is 'rocm', expected cpu or cuda\n"
    else:
        assert done.stdout.strip().endswith(f"-r pyproject.toml {expected}".strip())


def test_the_extras_named_in_the_dockerfile_exist():
    named = re.search(r"separated by spaces: ([\w ]+)\n", DOCKERFILE.read_text())[1].split()
    built = tomllib.loads((PROJECT_DIR / "pyproject.toml").read_text())
    assert set(named) <= built["project"]["optional-dependencies"].keys()


def test_the_image_runs_as_a_user_that_owns_what_it_writes_to_and_has_no_entry_point():
    stage = last_stage()
    assert [rest for name, rest in stage if name == "USER"] == [str(USER)]
    assert [name for name, _ in stage][-2:] == ["USER", "CMD"]  # all that root does comes before
    [made] = [rest for name, rest in stage if name == "RUN" and "useradd" in rest]
    assert f"--uid {USER} " in made
    mounts = {
        volume.split(":")[1]
        for name, service in load("compose.yaml")["services"].items()
        if name != "postgres"
        for volume in service.get("volumes", [])
    }
    assert mounts <= set(made.split("-g ups ")[1].split())
    assert "ENTRYPOINT" not in [name for name, _ in instructions()]


def test_a_worker_in_the_image_behaves_as_on_other_machines():
    assert image_env().items() >= WORKER_ENV.items()
    assert [name for name in image_env() if re.search("KEY|SECRET|PASSWORD|TOKEN", name)] == []


# ---- the services


@functools.cache
def services() -> dict:
    return load("compose.yaml")["services"]


def test_the_services_pass_docker_compose(tmp_path):
    compose = shutil.which("docker-compose")
    if not compose:
        pytest.skip("no docker-compose here")
    text = (FOLDER / "compose.yaml").read_text()
    plain = tmp_path / "compose.yaml"
    plain.write_text(re.sub(r"(?m)^name: .*$", "", text))  # versions before 2 do not know it
    env = {"PATH": os.environ["PATH"], **dict.fromkeys(REQUIRED.findall(text), "x")}
    command = [compose, "-f", plain, "-f", FOLDER / "compose.gpu.yaml", "config", "--quiet"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_services_wait_for_mount_and_build_is_there():
    compose = load("compose.yaml")
    assert services().keys() == {"postgres", "server", "store", "setup", "worker"}
    assert load("compose.gpu.yaml")["services"].keys() <= services().keys()
    used = set()
    for service in services().values():
        for name, wait in service.get("depends_on", {}).items():
            if wait["condition"] == "service_healthy":
                assert "healthcheck" in services()[name]
            else:
                assert services()[name]["restart"] == "no"
        used |= {volume.split(":")[0] for volume in service.get("volumes", [])}
        if "build" in service:
            context = (FOLDER / service["build"]["context"]).resolve()
            assert (context / service["build"]["dockerfile"]).samefile(DOCKERFILE)
            args = {rest.split("=")[0] for name, rest in instructions() if name == "ARG"}
            assert service["build"]["args"].keys() <= args
            assert service["init"] is True
    assert used == compose["volumes"].keys()


def test_ports_are_open_to_this_machine_alone_and_every_secret_is_asked_for():
    ports = [port for service in services().values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    for service in services().values():
        for name, value in service.get("environment", {}).items():
            if re.search("PASSWORD|KEY|CONNECTION_URL", name):
                assert REQUIRED.search(value), name
    asked = set(REQUIRED.findall((FOLDER / "compose.yaml").read_text()))
    assert asked == {"POSTGRES_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY"}


def test_addresses_lead_to_services_and_their_ports():
    def port(service: str) -> str:
        command = " ".join(services()[service]["command"])
        return re.search(r"(?:--port |0\.0\.0\.0:)(\d+)", command)[1]

    client = services()["worker"]["environment"]
    assert client == services()["setup"]["environment"]
    assert client["PREFECT_API_URL"] == f"http://server:{port('server')}/api"
    assert client["AWS_ENDPOINT_URL_S3"] == f"http://store:{port('store')}"
    for service in ("server", "store"):
        assert services()[service]["ports"] == [f"127.0.0.1:{port(service)}:{port(service)}"]
        assert port(service) in services()[service]["healthcheck"]["test"][-1]
    of_database = services()["postgres"]["environment"]
    url = services()["server"]["environment"]["PREFECT_SERVER_DATABASE_CONNECTION_URL"]
    user, database = of_database["POSTGRES_USER"], of_database["POSTGRES_DB"]
    assert url.startswith(f"postgresql+asyncpg://{user}:")
    assert url.endswith(f"@postgres:5432/{database}")


def test_the_variables_of_prefect_are_settings_of_it():
    given = [name for service in services().values() for name in service.get("environment", {})]
    given += image_env()
    named = {name for name in given if name.startswith("PREFECT_")}
    assert len(named) > 8
    assert named <= _get_settings_fields(Settings).keys()


def test_the_server_is_set_up_as_that_of_one_machine(monkeypatch):
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    of_stack = {
        k: v for k, v in Stack.find().prefect_env().items() if k.startswith("PREFECT_SERVER_")
    }
    assert services()["server"]["environment"].items() >= of_stack.items()


def test_the_store_is_started_as_that_of_one_machine():
    known = inspect.getsource(stack._start_store)
    command = services()["store"]["command"]
    assert all(f'"{word}"' in known for word in command if word.startswith("--") or word == "serve")
    assert "RCLONE_AUTH_KEY" in known
    assert services()["store"]["environment"]["RCLONE_AUTH_KEY"].startswith('"${S3_ACCESS_KEY')


def test_every_command_of_a_service_exists():
    commands = [service["command"] for service in services().values() if "command" in service]
    [inner] = [command[-1] for command in commands if command[0] == "bash"]
    commands += [shlex.split(part) for part in re.split(r"\n|\|\|", inner) if part.strip()]
    for command in commands:
        assert command[0] == "bash" or (BIN_DIR / command[0]).exists()
        if command[:2] == ["python", "-m"]:
            assert importlib.util.find_spec(command[2]) is not None
    assert dict(last_stage())["CMD"] == '["ups", "--help"]'


def test_the_worker_of_the_services_serves_the_pool_that_its_deployment_is_for():
    script = services()["setup"]["command"][-1]
    deployments = yaml.safe_load((PROJECT_DIR / "prefect.yaml").read_text())["deployments"]
    pools = {d["name"]: d["work_pool"]["name"] for d in deployments}
    deployed = re.search(r"deploy --name (\S+)", script)[1]
    pool = re.search(r"work-pool create (\S+) --type process", script)[1]
    assert pools[deployed] == pool == services()["worker"]["command"][3]
    load_config(re.search(r"deployments.seed (\S+)", script)[1])


def test_arguments_of_the_worker_are_known(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [*services()["worker"]["command"][2:], "--no-such-option"])
    with pytest.raises(SystemExit, match="2"):
        worker.main()
    assert capsys.readouterr().err.endswith("unrecognized arguments: --no-such-option\n")
