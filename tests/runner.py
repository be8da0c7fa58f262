"""The commands are built once for all tests that run some of them in their process."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import typer.testing
from typer.main import get_command


@pytest.fixture(scope="session", autouse=True)
def commands_are_built_once() -> Iterator[None]:
    """Typer's runner makes all of them anew each time, 30 ms of a processor for those of `ups`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.testing, "_get_command", functools.cache(get_command))
        yield
