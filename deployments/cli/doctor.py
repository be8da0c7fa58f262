"""`ups doctor`: what works here, and what to do about what does not."""

from __future__ import annotations

from typing import Annotated

import typer

from deployments.cli.stack import Host, PrefectPort, S3Port
from ups.cli.console import FAILED, errors_shown, print_json
from ups.cli.options import JsonOption

app = typer.Typer()


@app.command(epilog="Example: ups doctor --json")
def doctor(
    bucket: Annotated[
        str | None, typer.Option(help="A bucket of this shell's store to look into.")
    ] = None,
    host: Host = None,
    prefect_port: PrefectPort = None,
    s3_port: S3Port = None,
    as_json: JsonOption = False,
) -> None:
    """Say what works on this machine, and how to mend the rest.

    Server, pools, worker, store, credentials, disk, GPU, versions, ports. Nothing is started and
    nothing is changed. Exit code 1 where something is broken.
    """
    with errors_shown():
        from deployments.doctor.examine import examine
        from deployments.layout import Stack
        from deployments.stack import PARTS
        from ups.cli.checks import count_in_words, print_checks

        stack = Stack.find()
        if not any(map(stack.processes.running, PARTS)):  # then as it would be started
            stack = Stack.find(host, prefect_port, s3_port)
        found = examine(stack, bucket)
    is_well = all(finding.status != "fault" for finding in found)
    if as_json:
        print_json({"well": is_well, "findings": [one.model_dump() for one in found]})
    else:
        print_checks(found)
        faults, warnings, skipped = count_in_words(found)
        typer.echo(f"\n{stack.folder.parent}: {faults}, {warnings}, {skipped}")
    if not is_well:
        raise typer.Exit(FAILED)
