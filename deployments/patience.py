"""Ask a busy Prefect server again for longer than Prefect's own client does.

A server on SQLite answers 503 at once where another writes at that moment. Prefect's client asks
six times, then raises: the worker marks a run as Crashed that it was about to start, or ends. A 503
means that nothing was done, so any request may be sent again.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import httpx
from prefect.client.orchestration import PrefectClient

log = logging.getLogger("prefect.worker.patience")
BUSY_S = 600.0


def be_patient(client: PrefectClient, for_s: float = BUSY_S) -> None:
    """Have a client wait while the server is busy; what else it answers is as before."""
    inner = client._client
    send = inner.send

    async def send_patiently(request: httpx.Request, *args: Any, **options: Any) -> httpx.Response:
        began = time.monotonic()
        while True:
            try:
                return await send(request, *args, **options)
            except httpx.HTTPStatusError as error:
                waited = time.monotonic() - began
                if error.response.status_code != httpx.codes.SERVICE_UNAVAILABLE or waited > for_s:
                    raise
                path = request.url.path
                log.warning("the server was busy for %.0f s (503, %s): asking on", waited, path)

    inner.send = send_patiently  # type: ignore[method-assign]
