"""`ups vast search | launch | resume | onstart | setup-env`: train on a GPU rented from Vast.ai.

Exit code 1: a value is wrong, `vastai` is missing or has no key, or Vast refuses.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ups.cli.console import errors_shown, print_json, print_table
from ups.cli.options import JsonOption, parse_settings
from ups.cli.vast_options import LabelOption, OfferOptions, RunOptions, set_options, with_options
from ups.errors import VastError

if TYPE_CHECKING:  # what these import is slow, and `--help` does without
    from ups.validate.check import Check
    from ups.vast.offers import Offer, Wishes
    from ups.vast.script import Onstart

app = typer.Typer(no_args_is_help=True, help="GPUs rented from Vast.ai.")


@app.command(epilog="Example: ups vast search --gpu 'RTX 4090' --max-price 0.60 --json")
@with_options
def search(
    wanted: OfferOptions,
    limit: Annotated[int, typer.Option(min=1, help="Offers to show.")] = 10,
    as_json: JsonOption = False,
) -> None:
    """List offers with one GPU that fit, the cheapest first."""
    with errors_shown():
        from ups.vast import offers

        wishes = _wishes(wanted)
        found = offers.search(wishes, limit)
        if as_json:
            print_json([offer.model_dump() for offer in found])
        elif found:
            rows = [_row(offer) for offer in found]
            print_table(rows, right=("$/h", "GPU GB", "Mbit/s", "disk GB"))
        else:
            typer.echo(f"no offer fits: {wishes.query()}")


@app.command(
    epilog="Example: ups vast launch --config train_burgers_32dim --auto-shutdown --dry-run"
)
@with_options
def launch(
    run: RunOptions,
    wanted: OfferOptions,
    offer: Annotated[
        int | None, typer.Option(min=1, help="Id of an offer (default: the cheapest that fits).")
    ] = None,
    image: Annotated[
        str | None, typer.Option(help="Docker image (default: PyTorch's with the locked torch).")
    ] = None,
    label: LabelOption = None,
    volume: Annotated[
        int | None, typer.Option(min=1, help="Id of a volume of yours to mount at --mount.")
    ] = None,
    no_validate: Annotated[
        bool, typer.Option("--no-validate", help="Do not check config and objects before renting.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Write .vast/onstart.sh, print the command, rent nothing."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Rent a machine that trains once: clone, install, worker, run.

    Config and commit are checked before, and the config's objects where this shell has the keys.
    Without --auto-shutdown the instance goes on, and is paid for, until you stop it.
    """
    with errors_shown():
        from ups.vast import launch as vast
        from ups.vast import offers

        rents = not dry_run
        onstart = _plan(run, rents)
        checks = [] if no_validate else _check(run.config, onstart, rents)
        wishes = _wishes(wanted)
        chosen = _choose(offer, wishes) if rents else None
        if chosen is not None:
            onstart = vast.at_price(onstart, chosen.dph_total)
        number = offer or (chosen.id if chosen else None)
        command = vast.create_command(
            str(number) if number else vast.OFFER,
            vast.write_script(onstart),
            image=image or offers.default_image(),
            disk_gb=wishes.disk_gb,
            label=label or f"ups-{Path(run.config).stem}",
            volume=volume,
            mount=onstart.mount,
        )
        instance = vast.create(command) if rents else None
        if as_json:
            print_json(
                {
                    "instance": instance,
                    "offer": chosen.model_dump() if chosen else number,
                    "commit": onstart.commit,
                    "checks": [check.model_dump(mode="json") for check in checks],
                    "command": ["vastai", *command],
                    "onstart": str(vast.FOLDER / vast.SCRIPT),
                }
            )
            return
        for check in checks:
            typer.echo(f"checked  {check.group}, {check.name}: {check.text}")
        typer.echo(f"onstart  {vast.FOLDER / vast.SCRIPT}, commit {onstart.commit[:12]}")
        if number is None:
            typer.echo(f"search   {_command_line(wishes.command(1))}")
        typer.echo(f"command  {_command_line(command)}")
        if instance is not None:
            price = f", ${chosen.dph_total:.3f}/h, {chosen.gpu_name}" if chosen else ""
            typer.echo(f"rented   instance {instance}{price}; its log: vastai logs {instance}")
        _hint(onstart, instance)


@app.command(epilog="Example: ups vast resume ups-train_burgers_32dim")
def resume(
    instance: Annotated[str, typer.Argument(metavar="INSTANCE", help="Its id, or its label.")],
) -> None:
    """Start a stopped instance again.

    The same script trains again, with data and cache still there.
    """
    with errors_shown():
        from ups.vast import launch as vast

        number, is_started = vast.resume(instance)
        typer.echo(f"instance {number} " + ("is starting" if is_started else "runs already"))


@app.command(epilog="Example: ups vast onstart --config train_burgers_32dim --auto-shutdown")
@with_options
def onstart(run: RunOptions) -> None:
    """Print the script that a machine runs when it starts."""
    with errors_shown():
        typer.echo(_plan(run).script(), nl=False)


@app.command(epilog="Example: ups vast setup-env --name HF_TOKEN --dry-run")
def setup_env(
    name: Annotated[
        list[str] | None, typer.Option(help="A further variable of this environment to send.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be sent.")] = False,
) -> None:
    """Send keys and addresses from here to the account.

    Instances get them from there. Values are never printed, and no script holds them. `vastai`
    takes them as arguments: who shares this computer could see them in its list of processes for a
    moment.
    """
    with errors_shown():
        from ups.vast import launch as vast
        from ups.vast import tool

        found, missing = vast.variables(os.environ, name or [])
        known = [] if dry_run else vast.known_variables()
        for variable, value in found.items():
            if dry_run:
                typer.echo(_command_line(vast.send_command(variable, "*****")))
            else:
                tool.run(*vast.send_command(variable, value, known), secrets=[value])
                typer.echo(f"sent     {variable}")
        if missing:
            typer.echo(f"not set  {', '.join(missing)}")


def _wishes(wanted: OfferOptions) -> Wishes:
    from ups.vast.launch import checked
    from ups.vast.offers import Wishes

    return checked(Wishes, **set_options(wanted))


def _plan(run: RunOptions, rents: bool = False) -> Onstart:
    """Plan what the machine is to do, and warn of a commit that is not what lies here.

    Args:
        rents: a fault of the commit is an error, since it would be paid for.
    """
    from ups.vast import launch as vast

    options = {**set_options(run), "settings": parse_settings(run.settings)}
    onstart, source = vast.plan(**options)
    if source.differs:
        typer.echo("warning: files here are not as in the commit that the machine gets", err=True)
    if not source.pushed:
        fault = f"commit {source.commit[:12]} is in no branch of the remote: push it first"
        if rents:
            raise VastError(f"{fault}, or name a repository that has it with --repo")
        typer.echo(f"warning: {fault}", err=True)
    return onstart


def _check(config: str, onstart: Onstart, rents: bool) -> list[Check]:
    """What of `ups validate` can be said from here.

    Args:
        rents: a fault is an error, since it would be paid for.
    """
    from ups.vast import launch as vast

    checks = vast.check(config, onstart)
    faults = [f"{c.group}, {c.name}: {c.text}" for c in checks if c.status == "fault"]
    if faults and rents:
        raise VastError(
            "\n".join(["nothing was rented, since (--no-validate skips this):", *faults])
        )
    if faults:
        typer.echo("\n".join(["warning: this would not be rented:", *faults]), err=True)
    return checks


def _choose(number: int | None, wishes: Wishes) -> Offer | None:
    """The offer that was asked for, or the cheapest that fits; None if the former is not shown."""
    from ups.vast import offers

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


def _hint(onstart: Onstart, instance: int | None) -> None:
    """Say what the user has to do for the run to start, and for the machine to stop."""
    from ups.vast.launch import tunnel

    name = instance or "INSTANCE"
    if onstart.api_url is None:
        typer.echo("server   as PREFECT_API_URL of the account says (`ups vast setup-env`)")
    elif options := tunnel(onstart.api_url):
        typer.echo(f"server   yours, by a tunnel: ssh {options} $(vastai ssh-url {name})")
    if not onstart.auto_shutdown:
        typer.echo(
            "billing  goes on until you stop it: "
            f"vastai stop instance {name} (or launch with --auto-shutdown)"
        )


def _command_line(arguments: Sequence[str]) -> str:
    """A command of `vastai` as a person would type it."""
    return shlex.join(["vastai", *arguments])


def _row(offer: Offer) -> dict[str, str]:
    def number(value: float | None, digits: int = 0) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    return {
        "id": str(offer.id),
        "GPU": offer.gpu_name,
        "GPU GB": number(offer.gpu_ram and offer.gpu_ram / 1024),
        "$/h": number(offer.dph_total, 3),
        "reliability": number(offer.reliability, 3),
        "Mbit/s": number(offer.inet_down),
        "disk GB": number(offer.disk_space),
        "CUDA": number(offer.cuda_max_good, 1),
        "where": offer.geolocation or "",
    }
