"""`ups predict | score | export`: what is done with an operator once it is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ups.cli.console import errors_shown, print_json
from ups.cli.options import ConfigArgument, JsonOption, SetOption, parse_settings
from ups.cli.places import load_config_here
from ups.progress import progress_shown

app = typer.Typer()

CheckpointArgument = Annotated[
    Path, typer.Argument(help="A checkpoint, such as checkpoints/best.pt of a run.")
]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, or auto: the GPU if there is one.")]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Overwrite the files that are there already.")
]


@app.command(epilog="Example: ups predict best.pt burgers.h5 --nu 0.01 --steps 20 -o predicted.h5")
def predict(
    checkpoint: CheckpointArgument,
    data: Annotated[
        Path, typer.Argument(metavar="INPUT", help="HDF5 in PDEBench's layout; one frame will do.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="HDF5, in the same layout.")],
    nu: Annotated[float | None, typer.Option(help="ν of Burgers (default: the file's).")] = None,
    beta: Annotated[
        float | None, typer.Option(help="β of advection (default: the file's).")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Operator steps (default: to the file's end).")
    ] = None,
    problem: Annotated[
        str | None, typer.Option(help="Which of several problems, where ν or β leaves it open.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the first ones, as PNG.")] = None,
    device: DeviceOption = "auto",
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Predict how the trajectories of a file go on.

    What the file has of that is compared. The output begins with the given frames; its times are
    those of the file, one operator step apart.
    """
    with errors_shown():
        from ups.inference.files import predict_file
        from ups.inference.operator import load

        given = {"nu": nu, "beta": beta}
        operator = load(checkpoint, device)
        with progress_shown() as show:
            done = predict_file(
                operator,
                data,
                output,
                parameter={name: value for name, value in given.items() if value is not None},
                problem=problem,
                steps=steps,
                picture=plot,
                overwrite=force,
                progress=show("predicted", "trajectories"),
            )
        if as_json:
            print_json(done.model_dump(mode="json"))
            return
        what = f"{done.num_trajectories} trajectories of {done.equation}, {done.num_steps} steps"
        typer.echo(f"{done.output}: {what} of {done.step_dt:g}")
        if done.nrmse is not None:
            typer.echo(f"nRMSE against the file's own frames {done.nrmse:.4f}")
        if done.picture is not None:
            typer.echo(f"see {done.picture}")


@app.command(epilog="Example: ups score best.pt smoke --json")
def score(
    checkpoint: CheckpointArgument,
    config: ConfigArgument,
    settings: SetOption = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for scores.json and pictures (default: none)."),
    ] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Score a checkpoint on the test split of a config.

    The model is the one that the checkpoint has.
    """
    with errors_shown():
        from ups.data.sources import open_store
        from ups.inference.operator import load
        from ups.inference.score import config_to_score, score
        from ups.pipeline.phases import stage_splits

        operator = load(checkpoint, device)
        scored = config_to_score(operator, load_config_here(config, parse_settings(settings)))
        with progress_shown() as show:
            staged = stage_splits(scored, ["test"], open_store(scored), show)
            test = {name: splits["test"] for name, splits in staged.items()}
            scores = score(operator, scored, test, output, show)
        if as_json:
            print_json(scores.model_dump(mode="json"))
            return
        for name, own in {"test": scores, **scores.problems}.items():
            nrmse, persistence = own.rollout["nRMSE"], own.persistence_rollout["nRMSE"]
            of = f"{own.num_trajectories} trajectories"
            typer.echo(
                f"{name} rollout nRMSE {nrmse:.4f}, persistence {persistence:.4f}, one step "
                f"{own.one_step['nRMSE']:.5f} ({of})"
            )


@app.command(epilog="Example: ups export best.pt --to exported")
def export(
    checkpoint: CheckpointArgument,
    folder: Annotated[Path, typer.Option("--to", help="The folder to write into.")],
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Export weights, a card, and one step as a program.

    As safetensors, as JSON, and as a program of torch.export.
    """
    with errors_shown():
        from ups.inference.export import export
        from ups.inference.operator import load

        done = export(load(checkpoint, "cpu"), checkpoint, folder, overwrite=force)
        if as_json:
            print_json(done.model_dump(mode="json"))
            return
        for path in (done.weights, done.card, *done.programs.values()):
            if path is not None:
                typer.echo(path)
