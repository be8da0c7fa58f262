"""Options that commands of `ups vast` share."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ups import completion
from ups.cli_options import checked
from ups.errors import ConfigError
from ups.vast.defaults import MAX_HOURS, MAX_STALL_HOURS

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
    str,
    typer.Option(
        "--config",
        "-c",
        help="A name in deployments/configs, or a committed file.",
        autocompletion=completion.configs,
    ),
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
HoursOption = Annotated[
    float | None,
    typer.Option(
        help=f"With --auto-shutdown: then stop it, whatever it does (default: {MAX_HOURS:g})."
    ),
]
StallOption = Annotated[
    float | None,
    typer.Option(
        help="With --auto-shutdown: without progress for so long, it hangs "
        f"(default: {MAX_STALL_HOURS:g})."
    ),
]


def limits(
    auto_shutdown: bool, max_hours: float | None, max_stall_hours: float | None
) -> dict[str, Any]:
    """Those that are given.

    Raises:
        BadParameter: one is given, and nobody would keep to it.
    """
    given = {"max_hours": max_hours, "max_stall_hours": max_stall_hours}
    set_ = {name: hours for name, hours in given.items() if hours is not None}
    if set_ and not auto_shutdown:
        names = " and ".join(f"--{name.replace('_', '-')}" for name in set_)
        raise typer.BadParameter(f"{names}: nothing stops the instance without --auto-shutdown")
    return set_


def _one_line(text: str) -> None:
    if not text.isprintable():
        raise ConfigError(f"found {text!r}, expected one line")


LabelOption = Annotated[
    str | None,
    typer.Option(
        help="Of the instance (default: ups- and the config's name).", callback=checked(_one_line)
    ),
]
