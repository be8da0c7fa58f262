"""`ups validate CONFIG`: would this config run here, and what is its startup going to take.

Exit code 0: valid, perhaps with warnings; 1: at least one fault.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import typer

from ups.cli.checks import count_in_words, print_checks
from ups.cli.console import errors_shown, print_json
from ups.cli.options import parse_settings
from ups.cli.places import load_config_here
from ups.config import find_config
from ups.errors import ConfigError

if TYPE_CHECKING:
    from ups.validate.check import Report


def show_validation(
    config: str, settings: list[str] | None, *, as_json: bool, **options: Any
) -> None:
    """Print all checks of a config; exit code 1 where one of them is a fault.

    Args:
        settings: `KEY=VALUE` each.
        options: of `ups.validate.run.validate`.
    """
    with errors_shown(), _quiet():
        report = _report(config, parse_settings(settings), **options)
    if as_json:
        tree = {"valid": report.is_valid, **report.model_dump(mode="json")}
        print_json(tree)
    else:
        _show(report)
    if not report.is_valid:
        raise typer.Exit(1)


def _report(config: str, settings: Mapping[str, Any], **options: Any) -> Report:
    from ups.validate import run

    try:
        path = find_config(config)
        loaded = load_config_here(path, settings)
    except ConfigError as error:
        return run.invalid_config(config, error)
    return run.validate(loaded, path.name, **options)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without log lines: what they say stands in the checks."""
    loggers = [logging.getLogger(name) for name in ("ups", "botocore")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _show(report: Report) -> None:
    """Print a heading for each group, a line for each of its checks, and the verdict."""
    print_checks(report.checks)
    faults, warnings, skipped = count_in_words(report.checks)
    verdict = "valid" if report.is_valid else f"not valid, {faults}"
    typer.echo(f"\n{report.config}: {verdict}; {warnings}, {skipped}")
