"""The options that commands of `ups vast` share, each declared once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, get_type_hints

import typer

from ups.cli import completion
from ups.cli.options import SetOption, checked
from ups.errors import ConfigError
from ups.vast import (
    DISK_GB,
    GPU_RAM_GB,
    INET_MBPS,
    MAX_HOURS,
    MAX_STALL_HOURS,
    MOUNT,
    RELIABILITY,
    WORK,
)


@dataclass(frozen=True)
class OfferOptions:
    """Which machines will do; the fields are those of `offers.Wishes`."""

    gpu_name: str | None = typer.Option(
        None, "--gpu", help="GPU, as Vast names it, such as 'RTX 4090'."
    )
    gpu_ram_gb: float = typer.Option(GPU_RAM_GB, "--gpu-ram", help="GPU memory in GB, at least.")
    disk_gb: float = typer.Option(DISK_GB, "--disk", help="Disk in GB; it cannot grow later.")
    max_price: float | None = typer.Option(None, help="Dollars per hour with the disk, at most.")
    reliability: float = typer.Option(RELIABILITY, help="Vast's score of the host, 0 to 1.")
    inet_mbps: float = typer.Option(INET_MBPS, "--inet", help="Download rate in Mbit/s, at least.")
    cuda: str | None = typer.Option(
        None, help="CUDA that the driver can serve (default: what the locked torch needs)."
    )


@dataclass(frozen=True)
class RunOptions:
    """What a machine is to do; the fields are arguments of `launch.plan`."""

    config: str = typer.Option(
        ...,
        "--config",
        "-c",
        help="A name in deployments/configs, or a committed file.",
        autocompletion=completion.configs,
    )
    settings: SetOption = None
    repo: str | None = typer.Option(
        None, help="Address that the machine clones from (default: the remote origin)."
    )
    commit: str = typer.Option("HEAD", help="What it checks out.")
    api_url: str | None = typer.Option(
        None,
        envvar="PREFECT_API_URL",
        help="Prefect server (default: PREFECT_API_URL here, else the machine's own).",
    )
    mount: str = typer.Option(MOUNT, help="Folder on the machine for data, cache, runs and logs.")
    work: str = typer.Option(
        WORK, "--workdir", help="Folder on the machine for clone and environment."
    )
    auto_shutdown: bool = typer.Option(
        False,
        "--auto-shutdown",
        help="Stop the instance when the run is done, has failed or hangs.",
    )
    max_hours: float | None = typer.Option(
        None, help=f"With --auto-shutdown: then stop it, whatever it does (default: {MAX_HOURS:g})."
    )
    max_stall_hours: float | None = typer.Option(
        None,
        help="With --auto-shutdown: without progress for so long, it hangs "
        f"(default: {MAX_STALL_HOURS:g}).",
    )

    def __post_init__(self) -> None:
        """Refuse limits that nobody would keep to."""
        given = [n for n in ("max_hours", "max_stall_hours") if getattr(self, n) is not None]
        if given and not self.auto_shutdown:
            names = " and ".join(f"--{name.replace('_', '-')}" for name in given)
            raise typer.BadParameter(f"{names}: nothing stops the instance without --auto-shutdown")


def set_options(options: OfferOptions | RunOptions) -> dict[str, Any]:
    """The options that have a value; the others are left to the defaults behind the commands."""
    return {name: value for name, value in asdict(options).items() if value is not None}


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give typer the fields of a command's options objects as parameters, which it reads alone."""
    hints = get_type_hints(command, include_extras=True)
    groups = {n: hint for n, hint in hints.items() if hint in (OfferOptions, RunOptions)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in groups:
            parameters += inspect.signature(groups[name], eval_str=True).parameters.values()
        else:
            parameters.append(parameter.replace(annotation=hints[name]))

    @functools.wraps(command)
    def call(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        command(**given)

    by_name = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    call.__signature__ = inspect.Signature(by_name)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    return call


def _one_line(text: str) -> None:
    if not text.isprintable():
        raise ConfigError(f"found {text!r}, expected one line")


LabelOption = Annotated[
    str | None,
    typer.Option(
        help="Of the instance (default: ups- and the config's name).", callback=checked(_one_line)
    ),
]
