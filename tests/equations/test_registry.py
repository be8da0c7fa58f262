"""The registry has each equation once, and is read before torch is loaded."""

import subprocess
import sys
from typing import get_args

from ups.equations import EQUATIONS, EquationName, in_order, named_after


def test_every_name_of_the_config_is_registered_with_a_parameter_of_its_own_attribute():
    assert tuple(EQUATIONS) == get_args(EquationName)
    assert len({equation.attribute for equation in EQUATIONS.values()}) == len(EQUATIONS)


def test_a_problem_is_of_the_equation_that_its_name_begins_with():
    assert named_after("advection1d_beta0.4") == "advection1d"
    assert named_after("heat1d") is None
    assert in_order(["advection1d", "burgers1d", "advection1d"]) == ("burgers1d", "advection1d")


def test_neither_equations_nor_config_load_torch():
    script = "import sys, ups.config, ups.equations; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
