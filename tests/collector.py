"""The garbage collector rests while tests are collected, and leaves alone what was made by then.

Torch, Prefect and 3,000 tests are a million objects which stay to the end: to look through them
again and again took 20 s of a processor in a run of all tests.
"""

from __future__ import annotations

import gc
from collections.abc import Generator

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Of a worker of xdist, too; the process that leads them collects nothing."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
