"""Plug-in of Prefect's: `prefect deployment run train-burgers` without the flow's name.

Prefect itself takes only `<flow>/<deployment>`. Where plug-ins are switched on (`ups up` writes
that into `prefect.toml`), a bare name stands for the deployment that is called like its flow.
"""

from __future__ import annotations

import functools
from typing import Any

from prefect.plugins import register_hook


def full_name(name: str) -> str:
    """`train-burgers` becomes `train-burgers/train-burgers`; a full name stays as it is."""
    return name if "/" in name else f"{name}/{name}"


@register_hook
def setup_environment(*, ctx: Any) -> None:  # noqa: ARG001 - the hook's signature
    """Have Prefect's client find a deployment by its bare name, too."""
    from prefect.client.orchestration._deployments.client import DeploymentAsyncClient

    read = DeploymentAsyncClient.read_deployment_by_name
    if getattr(read, "takes_bare_names", False):
        return

    @functools.wraps(read)
    async def read_deployment_by_name(self: Any, name: str) -> Any:
        return await read(self, full_name(name))

    read_deployment_by_name.takes_bare_names = True  # type: ignore[attr-defined]
    DeploymentAsyncClient.read_deployment_by_name = read_deployment_by_name  # type: ignore[method-assign]
