import asyncio
import os
import subprocess
import sys

from prefect.client.orchestration._deployments.client import DeploymentAsyncClient

from deployments.layout import PROJECT_DIR
from deployments.prefect_plugin import full_name, setup_environment


def test_a_bare_name_stands_for_the_deployment_named_like_its_flow():
    assert full_name("train-burgers") == "train-burgers/train-burgers"
    assert full_name("train-burgers/gpu") == "train-burgers/gpu"


def test_prefects_client_is_asked_for_the_full_name(monkeypatch):
    async def read(_self, name):
        return name

    monkeypatch.setattr(DeploymentAsyncClient, "read_deployment_by_name", read)
    setup_environment(ctx=None)
    setup_environment(ctx=None)  # a second call changes nothing
    answer = asyncio.run(DeploymentAsyncClient.read_deployment_by_name(None, "train-burgers"))
    assert answer == "train-burgers/train-burgers"


def test_the_command_line_imports_nothing_that_is_slow():
    slow = "{'prefect', 'torch', 'boto3', 'httpx', 'h5py', 'numpy', 'pydantic', 'rich', 'yaml'}"
    code = f"import sys, deployments.cli.app; print(sorted({slow} & sys.modules.keys()))"
    env = {**os.environ, "PYTHONPATH": str(PROJECT_DIR)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
