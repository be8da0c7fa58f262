"""Arguments and options that several commands share, each with its completion."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from ups.cli import completion, places
from ups.errors import ConfigError

T = TypeVar("T")
RUNS_DIR = completion.RUNS_DIR
KEY_HELP = "A cache key, or the beginning of one."
RUN_HELP = "A run's id, its beginning or its end; or the beginning of its folder's name."
CONFIG_HELP = "A config's name (smoke, train_burgers_32dim, …) or path."


def checked(parse: Callable[[Any], object]) -> Callable[[T | None], T | None]:
    """A callback of an option: what `parse` refuses is wrong usage, exit code 2."""

    def check(value: T | None) -> T | None:
        if value is not None:
            try:
                parse(value)
            except ConfigError as error:
                raise typer.BadParameter(str(error)) from None
        return value

    return check


def parse_settings(settings: list[str] | None) -> dict[str, Any]:
    """`["latent.dim=64"]` → `{"latent.dim": 64}`; values are YAML.

    Raises:
        ConfigError: not KEY=VALUE, a key is there twice, or the value is not YAML.
    """
    from ups.config import read_yaml, shortened

    parsed = {}
    for key, value in once(map(key_value, settings or [])).items():
        try:
            parsed[key] = read_yaml(value)
        except ConfigError as error:
            found = shortened(value)
            raise ConfigError(f"{key}: found {found}, expected a value in YAML: {error}") from None
    return parsed


def check_run_id(run_id: str) -> None:
    from ups.runs.folder import check_id

    check_id(run_id)


def key_value(text: str) -> tuple[str, str]:
    """`epochs=10` → `("epochs", "10")`.

    Raises:
        ConfigError: there is no key, or no `=`.
    """
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise ConfigError(f"found {text!r}, expected KEY=VALUE, such as latent.dim=64")
    return key, value


def once(pairs: Iterable[tuple[str, T]]) -> dict[str, T]:
    """The pairs as a dict.

    Raises:
        ConfigError: a key is there twice, of which a dict would keep the last.
    """
    found: dict[str, T] = {}
    for key, value in pairs:
        if key in found:
            raise ConfigError(f"{key}: given twice, expected once: leave one out")
        found[key] = value
    return found


JsonOption = Annotated[
    bool, typer.Option("--json", help="Figures as JSON; progress goes to standard error.")
]
ConfigArgument = Annotated[str, typer.Argument(help=CONFIG_HELP, autocompletion=completion.configs)]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a value, e.g. latent.dim=64.",
        callback=checked(parse_settings),
        autocompletion=completion.config_keys,
    ),
]
RunIdOption = Annotated[
    str | None,
    typer.Option(
        "--run-id",
        help="Name the run; an interrupted one of that name goes on.",
        callback=checked(check_run_id),
    ),
]
CacheDirOption = Annotated[
    Path | None, typer.Option("--dir", help="The cache directory (default: data/latent_cache).")
]
CacheConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config",
        "-c",
        help="Take the cache directory from this config.",
        autocompletion=completion.configs,
    ),
]
RunsDirOption = Annotated[
    Path,
    typer.Option(
        "--dir", help="Where the folders of runs are.", callback=places.default_of_project
    ),
]
RunArgument = Annotated[
    str, typer.Argument(metavar="ID", help=RUN_HELP, autocompletion=completion.runs)
]
OtherRunArgument = Annotated[
    str,
    typer.Argument(
        metavar="OTHER",
        help="The run to compare it with, likewise.",
        autocompletion=completion.runs,
    ),
]
ParamOption = Annotated[
    list[str] | None,
    typer.Option(
        "--param",
        "-p",
        metavar="KEY=VALUE",
        help="A parameter of the flow, by the name in its form in the UI.",
        callback=checked(lambda texts: once(map(key_value, texts))),
    ),
]
TimeoutOption = Annotated[
    float | None, typer.Option(min=0, help="Seconds to follow the run (default: to its end).")
]
