"""The kinds of work pools that the deployments go to. Imported by the shell: only what is quick."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any, Literal

PoolKind = Literal["process", "docker", "kubernetes"]
# Kind of a work pool → the package that has its worker.
POOL_KINDS: dict[PoolKind, str] = {
    "process": "prefect",
    "docker": "prefect-docker",
    "kubernetes": "prefect-kubernetes",
}
WORKER_METADATA = "server/api/collections_data/views/aggregate-worker-metadata.json"


def job_template(kind: PoolKind) -> dict[str, Any]:
    """What Prefect has a pool of a kind begin with; of the installed release.

    A server would fetch it from the network, and Prefect Cloud has it at another address.
    """
    spec = importlib.util.find_spec("prefect")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    file = Path(spec.submodule_search_locations[0]) / WORKER_METADATA
    workers = json.loads(file.read_text())[POOL_KINDS[kind]]
    return dict(workers[kind]["default_base_job_configuration"])
