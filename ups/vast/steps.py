"""What the commands of `ups vast` share: wishes, plan, checks, the offer, and words for people."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from ups.cli_options import parse_settings
from ups.errors import VastError
from ups.vast import launch, offers
from ups.vast.offers import Offer, Wishes
from ups.vast.onstart import Onstart
from ups.vast.server import tunnel

if TYPE_CHECKING:
    from ups.validate.check import Check


def wishes_of(
    gpu: str | None,
    gpu_ram_gb: float,
    disk_gb: float,
    max_price: float | None,
    reliability: float,
    inet_mbps: float,
    cuda: str | None,
) -> Wishes:
    """
    Args:
        cuda: None: what the locked torch needs.
    Raises:
        ConfigError: a value is wrong.
    """
    return launch.checked(
        Wishes,
        gpu_name=gpu,
        gpu_ram_gb=gpu_ram_gb,
        disk_gb=disk_gb,
        max_price=max_price,
        reliability=reliability,
        inet_mbps=inet_mbps,
        cuda=cuda or offers.default_cuda(),
    )


def plan(config: str, settings: list[str] | None, rents: bool = False, **given: Any) -> Onstart:
    """What the machine is to do; what the user should know of the commit is said.

    Args:
        settings: `KEY=VALUE` each.
        rents: a fault of the commit is an error, since it would be paid for.
        given: further arguments of `launch.plan`.
    """
    onstart, source = launch.plan(config, parse_settings(settings), **given)
    if source.differs:
        typer.echo("warning: files here are not as in the commit that the machine gets", err=True)
    if not source.pushed:
        fault = f"commit {source.commit[:12]} is in no branch of the remote: push it first"
        if rents:
            raise VastError(f"{fault}, or name a repository that has it with --repo")
        typer.echo(f"warning: {fault}", err=True)
    return onstart


def checks_of(config: str, onstart: Onstart, rents: bool) -> list[Check]:
    """What of `ups validate` can be said from here.

    Args:
        rents: a fault is an error, since it would be paid for.
    """
    from ups.vast.check import check  # h5py and numpy, which nobody else here needs

    checks = check(config, onstart.parameters["overrides"], onstart.mount)
    faults = [f"{c.group}, {c.name}: {c.text}" for c in checks if c.status == "fault"]
    if faults and rents:
        raise VastError(
            "\n".join(["nothing was rented, since (--no-validate skips this):", *faults])
        )
    if faults:
        typer.echo("\n".join(["warning: this would not be rented:", *faults]), err=True)
    return checks


def choose(number: int | None, wishes: Wishes) -> Offer | None:
    """The offer that was asked for, or the cheapest that fits; None if the former is not shown."""
    if number is None:
        if not (found := offers.search(wishes, 1)):
            raise VastError(f"no offer fits: {wishes.query()}")
        return found[0]
    chosen = offers.find(number, wishes.disk_gb)
    if chosen is None:
        typer.echo(
            f"warning: Vast shows no offer {number}, so its price is not known: the breakdown "
            "counts in startup.price_per_hour of the config",
            err=True,
        )
    return chosen


def hint(onstart: Onstart, instance: int | None) -> None:
    """What the user has to do for the run to start, and for the machine to stop."""
    if onstart.api_url is None:
        typer.echo("server   as PREFECT_API_URL of the account says (`ups vast setup-env`)")
    elif options := tunnel(onstart.api_url):
        typer.echo(
            f"server   yours, by a tunnel: ssh {options} $(vastai ssh-url {instance or 'INSTANCE'})"
        )
    if not onstart.auto_shutdown:
        typer.echo(
            "billing  goes on until you stop it: "
            f"vastai stop instance {instance or 'INSTANCE'} (or launch with --auto-shutdown)"
        )


def command_line(arguments: Sequence[str]) -> str:
    """A command of `vastai` as a person would type it."""
    return shlex.join(["vastai", *arguments])
