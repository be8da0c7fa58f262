"""What a worker is to serve on a server that is there already, checked before it starts."""

from __future__ import annotations

from collections.abc import Sequence

from deployments import prefect_api as api
from deployments.deploy import NO_SERVER
from deployments.layout import StackError, require_clone
from deployments.servers import NamedServer, ask_for_pools, named_server


def find_served(pool: str, queues: Sequence[str]) -> NamedServer:
    """The server that this shell names, which has the pool and the queues.

    Raises:
        StackError: there is no server, it refuses, the pool is not there or is none of processes,
            or a queue is not there.
    """
    require_clone()
    server = named_server()
    if server is None:
        raise StackError(NO_SERVER)
    with server.asked() as client:
        found = ask_for_pools(client).get(pool)
        if found is None:
            raise StackError(
                f"no pool {pool} at {server.shown}: `ups deploy --pool {pool}` makes it"
            )
        if found["type"] != "process":
            raise StackError(
                f"pool {pool} at {server.shown} is of type {found['type']}, expected process: "
                f"`prefect worker start --pool {pool}` serves it"
            )
        known = api.queue_names(client, pool)
        if unknown := [queue for queue in queues if queue not in known]:
            raise StackError(
                f"no queue {unknown[0]} in the pool {pool} at {server.shown}, expected one of "
                f"{', '.join(sorted(known))}: `ups deploy --pool {pool} --queue {unknown[0]}` "
                "makes it"
            )
    return server
