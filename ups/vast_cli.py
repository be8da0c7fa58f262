"""`ups vast search | launch | resume | onstart | setup-env`: train on a GPU rented from Vast.ai.

Exit code 1: a value is wrong, `vastai` is missing or has no key, or Vast refuses.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ups.cli_options import JsonOption, SetOption
from ups.console import errors_shown, print_json, print_table
from ups.vast import defaults
from ups.vast.options import (
    ApiOption,
    CommitOption,
    ConfigOption,
    CudaOption,
    DiskOption,
    GpuOption,
    GpuRamOption,
    HoursOption,
    InetOption,
    LabelOption,
    MountOption,
    PriceOption,
    ReliabilityOption,
    RepoOption,
    ShutdownOption,
    StallOption,
    WorkOption,
    limits,
)

if TYPE_CHECKING:
    from ups.vast.offers import Offer

app = typer.Typer(no_args_is_help=True, help="GPUs rented from Vast.ai.")


@app.command(epilog="Example: ups vast search --gpu 'RTX 4090' --max-price 0.60 --json")
def search(
    gpu: GpuOption = None,
    gpu_ram: GpuRamOption = defaults.GPU_RAM_GB,
    disk: DiskOption = defaults.DISK_GB,
    max_price: PriceOption = None,
    reliability: ReliabilityOption = defaults.RELIABILITY,
    inet: InetOption = defaults.INET_MBPS,
    cuda: CudaOption = None,
    limit: Annotated[int, typer.Option(min=1, help="Offers to show.")] = 10,
    as_json: JsonOption = False,
) -> None:
    """List offers with one GPU that fit, the cheapest first."""
    with errors_shown():
        from ups.vast import offers, steps

        wishes = steps.wishes_of(gpu, gpu_ram, disk, max_price, reliability, inet, cuda)
        found = offers.search(wishes, limit)
        if as_json:
            print_json([offer.model_dump() for offer in found])
        elif found:
            print_table(
                [_row(offer) for offer in found], right=("$/h", "GPU GB", "Mbit/s", "disk GB")
            )
        else:
            typer.echo(f"no offer fits: {wishes.query()}")


@app.command(
    epilog="Example: ups vast launch --config train_burgers_32dim --auto-shutdown --dry-run"
)
def launch(
    config: ConfigOption,
    settings: SetOption = None,
    offer: Annotated[
        int | None, typer.Option(min=1, help="Id of an offer (default: the cheapest that fits).")
    ] = None,
    gpu: GpuOption = None,
    gpu_ram: GpuRamOption = defaults.GPU_RAM_GB,
    disk: DiskOption = defaults.DISK_GB,
    max_price: PriceOption = None,
    reliability: ReliabilityOption = defaults.RELIABILITY,
    inet: InetOption = defaults.INET_MBPS,
    cuda: CudaOption = None,
    image: Annotated[
        str | None, typer.Option(help="Docker image (default: PyTorch's with the locked torch).")
    ] = None,
    label: LabelOption = None,
    volume: Annotated[
        int | None, typer.Option(min=1, help="Id of a volume of yours to mount at --mount.")
    ] = None,
    repo: RepoOption = None,
    commit: CommitOption = "HEAD",
    api_url: ApiOption = None,
    mount: MountOption = defaults.MOUNT,
    workdir: WorkOption = defaults.WORK,
    auto_shutdown: ShutdownOption = False,
    max_hours: HoursOption = None,
    max_stall_hours: StallOption = None,
    no_validate: Annotated[
        bool,
        typer.Option("--no-validate", help="Do not check config and objects before renting."),
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
        from ups.vast import offers, steps

        onstart = steps.plan(
            config,
            settings,
            rents=not dry_run,
            repo=repo,
            commit=commit,
            api_url=api_url,
            mount=mount,
            work=workdir,
            auto_shutdown=auto_shutdown,
            **limits(auto_shutdown, max_hours, max_stall_hours),
        )
        checks = [] if no_validate else steps.checks_of(config, onstart, rents=not dry_run)
        wishes = steps.wishes_of(gpu, gpu_ram, disk, max_price, reliability, inet, cuda)
        chosen = None if dry_run else steps.choose(offer, wishes)
        if chosen is not None:
            onstart = vast.at_price(onstart, chosen.dph_total)
        number = offer or (chosen.id if chosen else None)
        command = vast.create_command(
            str(number) if number else vast.OFFER,
            vast.write_script(onstart),
            image=image or offers.default_image(),
            disk_gb=disk,
            label=label or f"ups-{Path(config).stem}",
            volume=volume,
            mount=mount,
        )
        instance = None if dry_run else vast.create(command)
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
            typer.echo(f"search   {steps.command_line(wishes.command(1))}")
        typer.echo(f"command  {steps.command_line(command)}")
        if instance is not None:
            price = f", ${chosen.dph_total:.3f}/h, {chosen.gpu_name}" if chosen else ""
            typer.echo(f"rented   instance {instance}{price}; its log: vastai logs {instance}")
        steps.hint(onstart, instance)


@app.command(epilog="Example: ups vast resume ups-train_burgers_32dim")
def resume(
    instance: Annotated[str, typer.Argument(metavar="INSTANCE", help="Its id, or its label.")],
) -> None:
    """Start a stopped instance: the same script trains again, with data and cache still there."""
    with errors_shown():
        from ups.vast import launch as vast

        number, started = vast.resume(instance)
        typer.echo(f"instance {number} " + ("is starting" if started else "runs already"))


@app.command(epilog="Example: ups vast onstart --config train_burgers_32dim --auto-shutdown")
def onstart(
    config: ConfigOption,
    settings: SetOption = None,
    repo: RepoOption = None,
    commit: CommitOption = "HEAD",
    api_url: ApiOption = None,
    mount: MountOption = defaults.MOUNT,
    workdir: WorkOption = defaults.WORK,
    auto_shutdown: ShutdownOption = False,
    max_hours: HoursOption = None,
    max_stall_hours: StallOption = None,
) -> None:
    """Print the script that a launched machine runs whenever it starts."""
    with errors_shown():
        from ups.vast import steps

        planned = steps.plan(
            config,
            settings,
            repo=repo,
            commit=commit,
            api_url=api_url,
            mount=mount,
            work=workdir,
            auto_shutdown=auto_shutdown,
            **limits(auto_shutdown, max_hours, max_stall_hours),
        )
        typer.echo(planned.script(), nl=False)


@app.command(epilog="Example: ups vast setup-env --name HF_TOKEN --dry-run")
def setup_env(
    name: Annotated[
        list[str] | None, typer.Option(help="A further variable of this environment to send.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be sent.")] = False,
) -> None:
    """Send keys and addresses from this environment to the account; instances get them from there.

    Values are never printed, and no script holds them. `vastai` takes them as arguments: who shares
    this computer could see them in its list of processes for a moment.
    """
    with errors_shown():
        from ups.vast import launch as vast
        from ups.vast import steps, tool

        found, missing = vast.variables(os.environ, name or [])
        known = [] if dry_run else vast.known_variables()
        for variable, value in found.items():
            if dry_run:
                typer.echo(steps.command_line(vast.send_command(variable, "*****")))
            else:
                tool.tell(*vast.send_command(variable, value, known), secrets=[value])
                typer.echo(f"sent     {variable}")
        if missing:
            typer.echo(f"not set  {', '.join(missing)}")


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
