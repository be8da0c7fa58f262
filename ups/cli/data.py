"""`ups data inspect | put | get | make`: a person's own data, before a config names them.

Exit code 1: an error, or a file that cannot be trained on as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar, cast

import typer

from ups.cli import completion
from ups.cli.console import errors_shown, print_json, quiet, stopping
from ups.cli.options import JsonOption, checked
from ups.equations import EQUATIONS, EquationName
from ups.errors import ConfigError, DataError
from ups.progress import progress_shown
from ups.units import format_size

if TYPE_CHECKING:
    from ups.data.inspect import Facts, Given
    from ups.data.objectstore import ObjectStore

T = TypeVar("T")

app = typer.Typer(
    no_args_is_help=True, help="Your own data: look into files, store them, make new ones."
)

PlaceArgument = Annotated[
    str,
    typer.Argument(
        metavar="PLACE", help="A file, a folder, a URL, s3://BUCKET/KEY or s3://BUCKET/DIR/."
    ),
]
NuOption = Annotated[float | None, typer.Option(help="ν of Burgers, where the file lacks it.")]
BetaOption = Annotated[float | None, typer.Option(help="β of advection, where the file lacks it.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite what is there already.")]


@app.command(epilog="Example: ups data inspect burgers.h5 --config mine.yaml --force")
def inspect(
    place: PlaceArgument,
    nu: NuOption = None,
    beta: BetaOption = None,
    sample: Annotated[int, typer.Option(min=1, help="Trajectories of each file to look at.")] = 16,
    config: Annotated[
        Path | None, typer.Option(metavar="NAME.yaml", help="Write a config that trains on it.")
    ] = None,
    force: ForceOption = False,
    digest: Annotated[
        bool, typer.Option("--digest", help="Take the SHA-256 of large local files, too.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what HDF5 files hold, and what they lack.

    An object is read by ranges, a few MB of it. Exit code 1: a file cannot be trained on.
    """
    with errors_shown():
        from ups.cli import data_rows as rows

        given = _given(nu, beta)
        if config is not None:
            _check_config_path(config, force)
        with quiet():
            found = _look(place, given, sample, hashed=digest)
        if as_json:
            print_json([facts.model_dump(mode="json") for facts in found])
        elif len(found) == 1:
            rows.show(found[0])
        else:
            rows.show_many(found)
        if config is not None:
            _write_config(config, found, err=as_json)
        if any(facts.faults for facts in found):
            raise typer.Exit(1)


def _check_equation(name: str) -> None:
    if name not in EQUATIONS:
        raise ConfigError(f"found {name!r}, expected one of {', '.join(EQUATIONS)}")


@app.command(epilog="Example: ups data make burgers1d --nu 0.01 -n 4 -o made.h5")
def make(
    equation: Annotated[
        str,
        typer.Argument(
            metavar="EQUATION",
            help="burgers1d or advection1d.",
            callback=checked(_check_equation),
            autocompletion=completion.equations,
        ),
    ],
    num: Annotated[int, typer.Option("-n", "--num", min=1, help="Trajectories.")],
    nu: Annotated[float | None, typer.Option(help="ν, of Burgers.")] = None,
    beta: Annotated[float | None, typer.Option(help="β, of advection.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Default: by equation and parameter.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Another one gives other trajectories.")] = 0,
    grid_points: Annotated[int, typer.Option(min=4, help="X.")] = 1024,
    frames: Annotated[int, typer.Option(min=2, help="Saved times.")] = 201,
    t_end: Annotated[float, typer.Option(min=1e-6, help="The last of them.")] = 2.0,
    force: ForceOption = False,
) -> None:
    """Solve an equation into a file like PDEBench's."""
    with errors_shown():
        given = _given(nu, beta)
        value = _parameter_of(equation, given)
        path = output or Path(f"{equation}_{EQUATIONS[equation].parameter}{value:g}.h5")
        if path.exists() and not force:
            raise ConfigError(f"{path} is there already: take another name, or give --force")
        from ups.data.generate import generate
        from ups.data.pdebench import SUFFIXES
        from ups.files import require_free_space

        if path.suffix not in SUFFIXES:
            raise ConfigError(f"--output: found {path}, expected a file called NAME.h5")
        num_bytes = 4 * num * frames * grid_points
        require_free_space(path.absolute().parent, num_bytes, str(path), "make fewer trajectories")
        import torch

        with progress_shown() as show:
            told = show("solved", "trajectories")
            generate(
                path,
                num,
                cast(EquationName, equation),
                value,
                seed=seed,
                grid_points=grid_points,
                num_frames=frames,
                t_end=t_end,
                device="cuda" if torch.cuda.is_available() else "cpu",
                progress=lambda done: told(done, num),
            )
        size = format_size(path.stat().st_size)
        typer.echo(f"{path}: {num} trajectories of {equation}, {size}; next: `ups data inspect`")


@app.command(epilog="Example: ups data put burgers.h5 s3://pdebench/mine/")
def put(
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE... s3://BUCKET/DIR/",
            help="Files and folders; last, where to: a folder, or the key of a single file.",
        ),
    ],
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Upload files, and their digests beside them.

    What the store has already is not sent again; an upload that was cut short goes on.
    """
    with errors_shown():
        from ups.data.put import plan_put, put
        from ups.data.uri import parse_address

        *files, where = places
        if not files:
            raise ConfigError("found one place, expected files and s3://BUCKET/DIR/ after them")
        target = parse_address(where)
        plan = plan_put(files, target)
        with _store() as store, progress_shown() as show, stopping() as stop:
            told = show("uploaded", "MB", 1e6)
            sent = put(store, target.bucket, plan, overwrite=force, progress=told, stop=stop)
        if as_json:
            print_json([each.model_dump(mode="json") for each in sent])
            return
        for each in sent:
            how = "was there" if each.was_there else "uploaded"
            if each.resumed_bytes:
                how = f"uploaded, {format_size(each.resumed_bytes)} of it earlier"
            size = format_size(each.num_bytes)
            typer.echo(f"{each.uri} {size} {how}, SHA-256 {each.sha256[:12]}… in its manifest")


@app.command(epilog="Example: ups data get s3://pdebench/mine/ data/mine")
def get(
    place: Annotated[
        str, typer.Argument(metavar="PLACE", help="s3://BUCKET/KEY, s3://BUCKET/DIR/, or a URL.")
    ],
    target: Annotated[
        Path, typer.Argument(metavar="[TO]", help="A folder, or the name of a single file.")
    ] = Path(),
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Download objects, and compare their digests.

    What is here already and verified is not fetched again; a download that was cut short goes on.
    """
    with errors_shown():
        from ups.data.put import get, plan_get
        from ups.data.uri import parse_readable

        source = parse_readable(place)
        with _store() as store, progress_shown() as show, stopping() as stop, quiet():
            plan = plan_get(store, source, target)
            told = show("downloaded", "MB", 1e6)
            done = get(store, source.bucket, plan, overwrite=force, progress=told, stop=stop)
        if as_json:
            print_json([{**asdict(each), "path": str(each.path)} for each in done])
            return
        for each in done:
            how = "was there" if each.reused else "downloaded"
            checked = "verified" if each.is_verified else "not verified, no digest is known"
            typer.echo(f"{each.path} {format_size(each.num_bytes)} {how}, {checked}")


@contextmanager
def _store() -> Iterator[ObjectStore]:
    """The store that the environment names."""
    from ups.data.objectstore import ObjectStore

    store = ObjectStore()
    try:
        yield store
    finally:
        store.close()


def _parameter_of(equation: str, given: Given) -> float:
    """The value that is given for the parameter of this equation.

    Raises:
        ConfigError: none is, or that of another.
    """
    option = f"--{EQUATIONS[equation].parameter}"
    if given.parameter is None:
        raise ConfigError(f"{equation} needs its {EQUATIONS[equation].symbol}: give {option} VALUE")
    if given.equation != equation:
        assert given.equation is not None
        other = EQUATIONS[given.equation].parameter
        raise ConfigError(f"found --{other} with {equation}, expected {option}")
    return given.parameter


def _given(nu: float | None, beta: float | None) -> Given:
    """What the options tell of the equation.

    Raises:
        ConfigError: they tell of two.
    """
    from ups.data.inspect import Given

    values = {"nu": nu, "beta": beta}
    told = [e for e in EQUATIONS.values() if values[e.parameter] is not None]
    if len(told) > 1:
        options = " and ".join(f"--{e.parameter}" for e in told)
        raise ConfigError(f"found {options}, expected the parameter of one equation")
    if not told:
        return Given()
    value = values[told[0].parameter]
    if not 0 < (value or 0) < math.inf:
        raise ConfigError(f"--{told[0].parameter}: found {value}, expected a number above 0")
    return Given.model_validate({"equation": told[0].name, "parameter": value})


def _check_config_path(path: Path, force: bool) -> None:
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--config: found {path}, expected a file called NAME.yaml")
    if path.exists() and not force:
        raise ConfigError(f"--config: {path} is there already: take another name, or give --force")


def _write_config(path: Path, found: list[Facts], *, err: bool) -> None:
    from ups.files import write_atomically
    from ups.validate.draft import draft

    write_atomically(path, draft(found, path.stem).encode())
    typer.echo(f"wrote {path}; next: `ups validate {path}`, `ups train {path}`", err=err)


def _look(place: str, given: Given, num_sampled: int, *, hashed: bool) -> list[Facts]:
    """The facts of a file, or of all in a folder."""
    from ups.data.inspect import files_in, inspect_file, inspect_object, objects_in
    from ups.data.uri import is_address, parse_readable

    if not is_address(place):
        look = partial(inspect_file, given=given, num_sampled=num_sampled, hashed=hashed)
        return _each(look, files_in(Path(place)))
    address = parse_readable(place)
    with _store() as store:
        keys = [address.key]
        if address.is_folder:
            keys = objects_in(store, address.bucket, address.key)
        look_at = partial(
            inspect_object, store, address.bucket, given=given, num_sampled=num_sampled
        )
        return _each(look_at, keys)


def _each(look: Callable[[T], Facts], files: Sequence[T]) -> list[Facts]:
    """The facts of each; of several, one that cannot be opened does not hide the others."""
    from ups.data.inspect import unreadable

    found = []
    for file in files:
        try:
            found.append(look(file))
        except DataError as error:
            if len(files) == 1:
                raise
            found.append(unreadable(str(file), error))
    return found
