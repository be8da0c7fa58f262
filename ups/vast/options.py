"""Options that commands of `ups vast` share."""

from __future__ import annotations

from typing import Annotated

import typer

GpuOption = Annotated[str | None, typer.Option(help="GPU, as Vast names it, such as 'RTX 4090'.")]
GpuRamOption = Annotated[float, typer.Option(help="GPU memory in GB, at least.")]
DiskOption = Annotated[float, typer.Option(help="Disk in GB; it cannot grow later.")]
PriceOption = Annotated[float | None, typer.Option(help="Dollars per hour with the disk, at most.")]
ReliabilityOption = Annotated[float, typer.Option(help="Vast's score of the host, 0 to 1.")]
InetOption = Annotated[float, typer.Option(help="Download rate in Mbit/s, at least.")]
CudaOption = Annotated[
    str | None,
    typer.Option(help="CUDA that the driver can serve (default: what the locked torch needs)."),
]

ConfigOption = Annotated[
    str, typer.Option("--config", "-c", help="A name in deployments/configs, or a committed file.")
]
RepoOption = Annotated[
    str | None,
    typer.Option(help="Address that the machine clones from (default: the remote origin)."),
]
CommitOption = Annotated[str, typer.Option(help="What it checks out.")]
ApiOption = Annotated[
    str | None,
    typer.Option(
        envvar="PREFECT_API_URL",
        help="Prefect server (default: PREFECT_API_URL here, else the machine's own).",
    ),
]
MountOption = Annotated[
    str, typer.Option(help="Folder on the machine for data, cache, runs and logs.")
]
WorkOption = Annotated[str, typer.Option(help="Folder on the machine for clone and environment.")]
ShutdownOption = Annotated[
    bool,
    typer.Option(
        "--auto-shutdown", help="Stop the instance when the run is done, has failed or hangs."
    ),
]
HoursOption = Annotated[float, typer.Option(help="Then stop it, whatever it does.")]
StallOption = Annotated[float, typer.Option(help="Without progress for so long: it hangs.")]
