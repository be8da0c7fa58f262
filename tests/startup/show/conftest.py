"""Figures are drawn in the style that the pictures have."""

import pytest
from matplotlib import rc_context

from ups.startup.show import pictures


@pytest.fixture(autouse=True)
def style():
    with rc_context(pictures.STYLE):
        yield
