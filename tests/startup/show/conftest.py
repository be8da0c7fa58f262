"""Figures are drawn in the style that the pictures have."""

import pytest
from matplotlib import rc_context

from ups.runs import look


@pytest.fixture(autouse=True)
def style():
    with rc_context(look.STYLE):
        yield
