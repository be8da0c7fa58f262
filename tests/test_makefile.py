"""Which environment the targets of the Makefile use."""

import shutil
import subprocess
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[1] / "Makefile"
needs_make = pytest.mark.skipif(not shutil.which("make"), reason="needs make")


def python(path, version):
    """A stand-in that says which Python it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho {version}\n")
    path.chmod(0o755)


@needs_make
def test_another_python_gets_an_environment_beside_the_one_that_is_there(tmp_path):
    def make(*arguments):
        command = ["make", "-n", "-f", MAKEFILE, "install", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        return done.stdout.partition("dependencies into ")[2].split('"')[0] or done.stderr

    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    for minor in ("3.11", "3.13"):
        python(tmp_path / f"python{minor}", minor)
    assert make("PYTHON=./python3.13") == ".venv"  # the first
    python(tmp_path / ".venv/bin/python", "3.11")
    assert make() == make("PYTHON=./python3.11") == ".venv"
    assert make("PYTHON=./python3.13") == ".venv-3.13"
    assert "PYTHON=python3.99 does not run here" in make("PYTHON=python3.99")
