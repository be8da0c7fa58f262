"""Artifacts of a flow run, one under each key, however often they change or the run is retried."""

from __future__ import annotations

import json
from collections.abc import Sequence
from uuid import UUID

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
)
from prefect.runtime import flow_run

from ups.runs.table import Row


class Artifacts:
    """What is shown of the flow run whose context this is used in."""

    def __init__(self) -> None:
        self._ids: dict[str, UUID] = {}

    def show(self, key: str, title: str, content: str | Sequence[Row]) -> None:
        """Show Markdown, or the rows of a table, in place of what was shown under this key."""
        found = self._ids.get(key) or find_artifact(key)
        if found is not None:
            data = content if isinstance(content, str) else json.dumps([dict(r) for r in content])
            change = {"data": data, "description": title}
            with get_client(sync_client=True) as client:
                # Not `update_artifact`: it also stores each version as an event.
                path = {"id": found}
                client.request("PATCH", "/artifacts/{id}", json=change, path_params=path)
        elif isinstance(content, str):
            found = create_markdown_artifact(key=key, markdown=content, description=title)
        else:
            rows = [dict(row) for row in content]
            found = create_table_artifact(key=key, table=rows, description=title)
        self._ids[key] = found


def find_artifact(key: str) -> UUID | None:
    """The artifact that this flow run has under a key, of an earlier attempt perhaps."""
    run_id = UUID(flow_run.id)
    only = ArtifactFilter(
        key=ArtifactFilterKey(any_=[key]), flow_run_id=ArtifactFilterFlowRunId(any_=[run_id])
    )
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=only)
    return found[0].id if found else None
