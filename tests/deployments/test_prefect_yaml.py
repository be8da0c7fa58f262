import re

import yaml

from deployments import rented
from deployments.layout import PROJECT_DIR
from deployments.stack import POOLS, deployment_names
from ups.config import load_config

DEPLOYMENTS = yaml.safe_load((PROJECT_DIR / "prefect.yaml").read_text())["deployments"]


def test_the_local_and_the_gpu_deployment_are_there():
    pools = {d["name"]: d["work_pool"]["name"] for d in DEPLOYMENTS}
    assert pools["train-burgers"] == "local"
    assert pools["gpu"] == pools["rented"] == rented.POOL
    assert deployment_names() == {"train-burgers", "benchmark", "benchmark-startup"}  # of `ups up`


def test_every_deployment_names_a_flow_a_pool_a_warm_start_and_a_config_that_are_there():
    for deployment in DEPLOYMENTS:
        assert re.fullmatch(r"flows/\w+\.py:\w+", deployment["entrypoint"])
        pool = deployment["work_pool"]
        assert pool["name"] in {*POOLS, rented.POOL}
        assert pool["job_variables"]["command"] == "python -I -S deployments/start.py"
        assert deployment["description"]
        assert deployment["tags"]
        if "parameters" in deployment:
            load_config(deployment["parameters"]["config"])


def test_trainings_wait_for_each_other_and_a_second_benchmark_is_refused():
    limits = {d["name"]: d.get("concurrency_limit") for d in DEPLOYMENTS}
    assert limits["train-burgers"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
    assert limits["gpu"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
    assert limits["benchmark-startup"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}
    # A wait for a slot would count as startup, and the benchmark would wait for itself.
    assert limits["benchmark"] is None
    assert limits["rented"] is None  # each rented machine takes one run at a time by itself


def test_a_benchmark_leaves_the_users_data_alone():
    envs = {d["name"]: d["work_pool"]["job_variables"].get("env") for d in DEPLOYMENTS}
    assert envs["benchmark"] == envs["benchmark-startup"] == {"PDEBENCH_ROOT": ""}
