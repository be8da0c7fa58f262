"""Options of the commands that may start the stack."""

from __future__ import annotations

from typing import Annotated

import typer

LAST = "default: as last time, at first"
Host = Annotated[
    str | None,
    typer.Option(
        envvar="UPS_HOST",
        help=f"Address that UI, API and object store listen on ({LAST} 127.0.0.1).",
    ),
]
PrefectPort = Annotated[
    int | None,
    typer.Option(
        envvar="UPS_PREFECT_PORT", min=1, max=65535, help=f"Port of the UI and API ({LAST} 4200)."
    ),
]
S3Port = Annotated[
    int | None,
    typer.Option(
        envvar="UPS_S3_PORT", min=1, max=65535, help=f"Port of the object store ({LAST} 9000)."
    ),
]
