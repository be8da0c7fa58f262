"""All that the doctor looks at, in the order in which it is shown."""

from __future__ import annotations

from deployments.doctor.findings import Finding
from deployments.doctor.machine import examine_disk, examine_gpu, examine_ports, examine_versions
from deployments.doctor.server import examine_servers
from deployments.doctor.store import examine_stores
from deployments.layout import Stack


def examine(stack: Stack, bucket: str | None = None) -> list[Finding]:
    """Look at everything; nothing is started, and nothing of the project's is written.

    Args:
        bucket: of this shell's store, to look into.
    """
    servers, answers = examine_servers(stack)
    return [
        *servers,
        *examine_stores(stack, bucket),
        *examine_disk(stack),
        *examine_gpu(),
        *examine_versions(),
        *examine_ports(stack, server_answers=answers),
    ]
