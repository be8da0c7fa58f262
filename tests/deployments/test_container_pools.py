"""The work pools of containers and pods against Prefect's own templates; no engine runs."""

import functools
import json
import re
from pathlib import Path

import prefect
import pytest
import yaml
from docker.types import HostConfig
from prefect.utilities.templating import apply_values

from deployments.layout import PROJECT_DIR
from flows.train_burgers import train_burgers
from ups.config import load_config
from ups.machine.ranks import NAMES

FOLDER = PROJECT_DIR / "deployments" / "container"


def load(name: str) -> dict:
    return yaml.safe_load((FOLDER / name).read_text())


def of_image(instruction: str) -> str:
    """What the last instruction of a name in the Dockerfile says."""
    return re.findall(rf"(?m)^{instruction} (.+)$", (FOLDER / "Dockerfile").read_text())[-1]


@functools.cache
def default_template(package: str, kind: str) -> dict:
    """The base job template that this version of Prefect's server gives to such a pool."""
    views = Path(prefect.__file__).parent / "server" / "api" / "collections_data" / "views"
    known = json.loads((views / "aggregate-worker-metadata.json").read_text())
    return known[package][kind]["default_base_job_configuration"]


def pod_template() -> dict:
    manifest = load("kubernetes-pool.json")["job_configuration"]["job_manifest"]
    return manifest["spec"]["template"]["spec"]


def job_variables(deployment: str) -> dict:
    [found] = [d for d in load("prefect.yaml")["deployments"] if d["name"] == deployment]
    return found["work_pool"]["job_variables"]


def test_what_is_mounted_belongs_to_the_user_of_the_image():
    mounts = [mount["mountPath"] for mount in pod_template()["containers"][0]["volumeMounts"]]
    mounts += [volume.split(":")[1] for volume in job_variables("docker")["volumes"]]
    [made] = re.findall(r"install -d -o ups -g ups (.+)", (FOLDER / "Dockerfile").read_text())
    assert set(mounts) == {"/app/data", "/app/runs"} <= set(made.split())


@pytest.mark.parametrize("name", ["docker", "docker-gpu", "kubernetes"])
def test_a_deployment_in_a_container_is_one_of_the_flow_with_variables_that_its_pool_knows(name):
    [found] = [d for d in load("prefect.yaml")["deployments"] if d["name"] == name]
    path, function = found["entrypoint"].split(":")
    assert (PROJECT_DIR / path).exists()
    assert function == train_burgers.fn.__name__
    load_config(found["parameters"]["config"])
    pool = found["work_pool"]["name"]
    assert name.startswith(pool)
    known = load(f"{pool}-pool.json")["variables"]["properties"]
    assert found["work_pool"]["job_variables"].keys() <= known.keys()
    [step] = load("prefect.yaml")["pull"]
    assert step["prefect.deployments.steps.set_working_directory"]["directory"] == of_image(
        "WORKDIR"
    )


@pytest.mark.parametrize(
    ("package", "kind"), [("prefect-docker", "docker"), ("prefect-kubernetes", "kubernetes")]
)
def test_a_template_is_prefects_own_with_additions_and_every_addition_has_a_reader(package, kind):
    ours, theirs = load(f"{kind}-pool.json"), default_template(package, kind)

    def holds(more: object, less: object) -> bool:
        if isinstance(less, dict):
            return isinstance(more, dict) and all(
                k in more and holds(more[k], v) for k, v in less.items()
            )
        if isinstance(less, list) and less and isinstance(less[0], dict):
            return len(more) == len(less) and all(map(holds, more, less))
        return more == less

    assert holds(ours, theirs)
    added = ours["variables"]["properties"].keys() - theirs["variables"]["properties"].keys()
    assert added
    text = json.dumps(ours["job_configuration"])
    assert all(f"{{{{ {name} }}}}" in text for name in ours["variables"]["properties"])


def test_gpus_reach_the_engine():
    given = job_variables("docker-gpu")["container_create_kwargs"]
    config = HostConfig(version="1.43", **given)
    assert config["Init"] is True
    [request] = config["DeviceRequests"]
    assert (request["Count"], request["Capabilities"]) == (-1, [["gpu"]])
    assert "container_create_kwargs" not in job_variables("docker")
    default = load("docker-pool.json")["variables"]["properties"]["container_create_kwargs"]
    assert default["default"] == {"init": True}


def test_a_pod_gets_a_gpu_the_claim_and_the_keys_and_is_not_root():
    manifest = load("kubernetes-pool.json")["job_configuration"]["job_manifest"]
    filled = apply_values(manifest, job_variables("kubernetes"))
    pod = filled["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert container["image"] == "ups-train:cuda"
    assert (
        pod["securityContext"]["runAsUser"]
        == pod["securityContext"]["fsGroup"]
        == int(of_image("USER"))
    )
    claim = load("kubernetes.yaml")
    assert (claim["kind"], claim["apiVersion"]) == ("PersistentVolumeClaim", "v1")
    [volume] = pod["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"]}
    [keys] = container["envFrom"]
    secret = keys["secretRef"]["name"]
    assert f"create secret generic {secret} " in (FOLDER / "kubernetes.yaml").read_text()
    without = apply_values(manifest, {"image": "x"})["spec"]["template"]["spec"]["containers"][0]
    assert "nvidia.com/gpu" not in without["resources"]["limits"]


def test_a_run_keeps_no_folder_of_its_worker():
    [made] = re.findall(r"install -d -o ups -g ups (.+)", (FOLDER / "Dockerfile").read_text())
    for deployment in load("prefect.yaml")["deployments"]:
        env = deployment["work_pool"]["job_variables"]["env"]
        assert env["PREFECT_HOME"] in made.split()


def test_keys_are_read_by_the_worker_and_stand_in_no_job_variable():
    for deployment in load("prefect.yaml")["deployments"]:
        env = deployment["work_pool"]["job_variables"]["env"]
        assert [name for name in env if re.search("KEY|SECRET|TOKEN", name)] == []
        assert "prefect.blocks" not in json.dumps(env)  # `prefect deploy` would resolve them
    by_pool = load("docker-pool.json")["variables"]["properties"]["env"]["default"]
    assert by_pool.keys() == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    blocks = r"\{\{ prefect\.blocks\.secret\.([\w-]+) \}\}"
    named = {re.fullmatch(blocks, value)[1] for value in by_pool.values()}
    page = (PROJECT_DIR / "docs" / "containers.md").read_text()
    assert all(f"`{name}`" in page for name in named)


def test_the_pods_of_a_training_in_ranks_know_each_other_and_have_the_volumes_of_the_pool():
    service, job = yaml.safe_load_all((FOLDER / "ranks.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    given = {variable["name"]: variable["value"] for variable in container["env"]}
    assert {*given, "RANK"} == set(NAMES)
    assert "RANK=$JOB_COMPLETION_INDEX exec ups train" in container["args"][0]
    assert int(given["WORLD_SIZE"]) == job["spec"]["completions"] == job["spec"]["parallelism"]
    names = job["metadata"]["name"], service["metadata"]["name"]
    assert given["MASTER_ADDR"] == f"{names[0]}-0.{names[1]}"
    assert pod["subdomain"] == names[1]
    of_pool = json.loads((FOLDER / "kubernetes-pool.json").read_text())["job_configuration"]
    (like,) = of_pool["job_manifest"]["spec"]["template"]["spec"]["containers"]
    assert container["volumeMounts"] == like["volumeMounts"]
    assert container["envFrom"] == like["envFrom"]
