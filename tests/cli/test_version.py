"""One version, of the command, the package and the changelog."""

import re
import tomllib

from typer.testing import CliRunner

import ups
from deployments.cli.app import app
from ups import PROJECT_DIR

CHANGELOG = (PROJECT_DIR / "CHANGELOG.md").read_text()


def test_the_command_says_the_version():
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.stdout) == (0, f"ups-train {ups.__version__}\n")


def test_the_package_is_built_with_the_version_of_the_library():
    tree = tomllib.loads((PROJECT_DIR / "pyproject.toml").read_text())
    assert "version" not in tree["project"]
    assert tree["project"]["dynamic"] == ["version"]
    assert tree["tool"]["hatch"]["version"]["path"] == "ups/__init__.py"


def test_the_changelog_is_of_this_version_and_in_order():
    titles = re.findall(r"^## (.+)$", CHANGELOG, re.M)
    assert titles[0] == "[Unreleased]"
    assert ups.__version__ in CHANGELOG
    kinds = set(re.findall(r"^### (.+)$", CHANGELOG, re.M))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_library_says_that_it_has_types():
    assert (PROJECT_DIR / "ups" / "py.typed").is_file()
