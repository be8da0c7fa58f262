"""`ups vast search | launch | resume | destroy | onstart | setup-env`: GPUs rented from Vast.ai.

Exit code 1: a value is wrong, `vastai` is missing or has no key, or Vast refuses.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    count: Annotated[
        int, typer.Option(min=1, max=64, help="Machines, each with a run of its own; all or none.")
    ] = 1,
    max_total: Annotated[
        float | None, typer.Option(min=0, help="Dollars per hour of all machines, at most.")
    ] = None,
    volume: Annotated[
        int | None, typer.Option(min=1, help="Id of a volume of yours to mount at --mount.")
    ] = None,
    no_validate: Annotated[
        bool,
        typer.Option(
            "--no-validate", help="Do not check config, login and objects before renting."
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Write .vast/onstart.sh, print the command, rent nothing."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Rent a machine that trains once: clone, install, worker, run.

    Config, commit and the server's login are checked before, and the config's objects where this
    shell has the keys. Without --auto-shutdown the instance goes on, and is paid for, until you
    stop it. With --count, several do the same at once.
    """
    if count > 1 and (offer or volume):
        given = "--offer" if offer else "--volume"
        raise typer.BadParameter(f"{given} is of one machine, and --count asks for {count}")
    if offer and max_total is not None:
        raise typer.BadParameter("--max-total chooses among offers, and --offer names one")
    with errors_shown():
        from ups.vast import fleet, offers
        from ups.vast import launch as vast

        rents = not dry_run
        onstart = _plan(run, rents)
        checks = [] if no_validate else _check(run.config, onstart, rents)
        wishes = _wishes(wanted)
        names = fleet.labels(label or f"ups-{Path(run.config).stem}", count)
        chosen = _choose(offer, wishes, count, max_total) if rents else [None] * count
        machines = [
            _machine(
                vast.at_price(onstart, one.dph_total) if one else onstart,
                vast.FOLDER / (name if count > 1 else ""),
                number=offer or (one.id if one else None),
                image=image or offers.default_image(),
                disk_gb=wishes.disk_gb,
                label=name,
                volume=volume,
            )
            for name, one in zip(names, chosen, strict=True)
        ]
        ids = fleet.rent([machine.command for machine in machines]) if rents else []
        rented: list[int | None] = [*ids] or [None] * count
        if as_json:
            rows = [
                {
                    "instance": instance,
                    "label": name,
                    "offer": one.model_dump() if one else machine.number,
                    "command": ["vastai", *machine.command],
                    "onstart": str(machine.script),
                }
                for instance, name, one, machine in zip(
                    rented, names, chosen, machines, strict=True
                )
            ]
            shared = {
                "commit": onstart.commit,
                "checks": [check.model_dump(mode="json") for check in checks],
            }
            print_json({**shared, **(rows[0] if count == 1 else {"machines": rows})})
            return
        for check in checks:
            typer.echo(f"checked  {check.group}, {check.name}: {check.text}")
        typer.echo(f"onstart  {machines[0].script}, commit {onstart.commit[:12]}")
        if machines[0].number is None:
            typer.echo(f"search   {_command_line(wishes.command(count))}")
        for machine in machines:
            typer.echo(f"command  {_command_line(machine.command)}")
        for instance, name, one in zip(ids, names, chosen, strict=bool(ids)):
            price = f", ${one.dph_total:.3f}/h, {one.gpu_name}" if one else ""
            called = f" ({name})" if count > 1 else ""
            typer.echo(
                f"rented   instance {instance}{called}{price}; its log: vastai logs {instance}"
            )
        _hint(onstart, rented, names)


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


@app.command(epilog="Example: ups vast destroy ups-train_burgers_32dim --yes")
def destroy(
    instances: Annotated[
        list[str],
        typer.Argument(metavar="INSTANCE…", help="Ids or labels; a label with --count: all of it."),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Give instances back, with all that is on their disks.

    Nothing of them is paid for any more. Runs, checkpoints and cache that lie there are lost: copy
    first what you want to keep.
    """
    with errors_shown():
        from ups.vast import fleet

        found = fleet.find_all(instances)
        shown = {int(i["id"]): f"instance {i['id']} ({i.get('label')})" for i in found}
        if not yes:
            what = ", ".join(shown.values())
            if not sys.stdin.isatty():
                raise VastError(f"{what}: nothing was destroyed, since nobody can be asked: --yes")
            typer.confirm(f"destroy {what}, with all data?", abort=True)
        faults = []
        for number, text in shown.items():
            try:
                fleet.destroy(number)
            except VastError as error:  # the others are paid for, too
                faults.append(f"{text}: {error}")
            else:
                typer.echo(f"destroyed  {text}")
        if faults:
            raise VastError("\n".join(["still paid for:", *faults]))


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
    moment. A login that the Prefect server refuses is not sent.
    """
    with errors_shown():
        from ups.vast import launch as vast
        from ups.vast import tool
        from ups.vast.server import check_login

        found, missing = vast.variables(os.environ, name or [])
        if not dry_run and (url := found.get("PREFECT_API_URL")):
            check_login(url, found)
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
    from ups.vast.server import check_login

    url = onstart.api_url or os.environ.get("PREFECT_API_URL")
    if url:
        try:
            check_login(url, os.environ)
        except VastError as error:
            if rents:
                raise VastError(f"nothing was rented, since {error}") from None
            typer.echo(f"warning: this would not be rented: {error}", err=True)
    checks = vast.check(config, onstart)
    faults = [f"{c.group}, {c.name}: {c.text}" for c in checks if c.status == "fault"]
    if faults and rents:
        raise VastError(
            "\n".join(["nothing was rented, since (--no-validate skips this):", *faults])
        )
    if faults:
        typer.echo("\n".join(["warning: this would not be rented:", *faults]), err=True)
    return checks


@dataclass(frozen=True, slots=True)
class _Machine:
    """What is to be rented: an offer's id, if it is known, and the arguments of `vastai`."""

    number: int | None
    script: Path
    command: list[str]


def _machine(onstart: Onstart, folder: Path, *, number: int | None, **options: Any) -> _Machine:
    from ups.vast import launch as vast

    packed = vast.write_script(onstart, folder)
    offer = str(number) if number else vast.OFFER
    command = vast.create_command(offer, packed, mount=onstart.mount, **options)
    return _Machine(number, folder / vast.SCRIPT, command)


def _choose(
    number: int | None, wishes: Wishes, count: int, max_total: float | None
) -> list[Offer | None]:
    """The offer that was asked for, or the cheapest that fit; None if the former is not shown."""
    from ups.vast import fleet, offers

    if number is None:
        return [*fleet.choose(wishes, count, max_total)]
    chosen = offers.find(number, wishes.disk_gb)
    if chosen is None:
        typer.echo(
            f"warning: Vast shows no offer {number}, so its price is not known: the breakdown "
            "counts in startup.price_per_hour of the config",
            err=True,
        )
    return [chosen]


def _hint(onstart: Onstart, rented: Sequence[int | None], labels: Sequence[str]) -> None:
    """Say what the user has to do for the runs to start, and for the machines to stop."""
    from ups.vast.launch import tunnel

    if onstart.api_url is None:
        typer.echo("server   as PREFECT_API_URL of the account says (`ups vast setup-env`)")
    elif options := tunnel(onstart.api_url):
        for instance in rented:
            name = instance or "INSTANCE"
            typer.echo(f"server   yours, by a tunnel: ssh {options} $(vastai ssh-url {name})")
    if not onstart.auto_shutdown:
        stop = f"vastai stop instance {rented[0] or 'INSTANCE'}"
        if len(rented) > 1:
            stop = f"ups vast destroy {labels[0].rpartition('-')[0]}"
        typer.echo(f"billing  goes on until you stop it: {stop} (or launch with --auto-shutdown)")


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
