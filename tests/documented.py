"""The commands of README, CONTRIBUTING and docs/, and `documented.yaml`: what runs each of them.

run:      test → the commands that it runs
not run:  reason → the commands that CI cannot run
"""

from __future__ import annotations

import functools
import re
import shlex
from typing import Any

import typer
import yaml

from deployments.cli.app import app
from deployments.layout import PROJECT_DIR as ROOT

DOCS = sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
TEXT = {
    page: (ROOT / page).read_text()
    for page in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", *DOCS)
}
SETTINGS = ("cd", "export", "set")  # of the shell: what later lines need, nothing to run by itself
# What begins a command in running text, where all of it stands in backquotes.
PROGRAMS = (
    r"ups|make|prefect (?:deployment|worker|cloud)|python -m|\.venv/bin/\w+|uv pip|pip|apt-get|ssh|"
    "tensorboard|wandb"
)


def found(pattern: str) -> list:
    """What a pattern finds in all pages, each once."""
    return list(dict.fromkeys(f for text in TEXT.values() for f in re.findall(pattern, text, re.S)))


def fenced() -> list[str]:
    """The lines of the pages' bash fences, cut at && and ;."""
    lines = [line for fence in found(r"```bash\n(.*?)```") for line in fence.splitlines()]
    cut = [command.strip() for line in lines for command in re.split("&&|;", line)]
    return list(dict.fromkeys(command for command in cut if command))


def in_running_text() -> list[str]:
    """What stands in backquotes and begins as a command does; of `ups` what is complete."""
    quoted = [" ".join(text.split()) for text in found(rf"`((?:{PROGRAMS})\s[^`]+)`")]
    return [text for text in quoted if not text.startswith("ups ") or is_complete(text)]


def is_complete(text: str) -> bool:
    """Whether a command of `ups` has all that it needs: a name alone often has not."""
    try:
        command, words = find_command(shlex.split(text)[1:])
        return bool(words if hasattr(command, "commands") else command.make_context(None, words))
    except typer.Exit:  # --help, --version: shown at once
        return True
    except typer.BadParameter:  # one is missing
        return False


def documented() -> list[str]:
    """Every command of the pages, each once."""
    given = [command for command in fenced() if command.split()[0] not in SETTINGS]
    return list(dict.fromkeys([*given, *in_running_text()]))


def table() -> dict[str, dict[str, list[str]]]:
    """Of `documented.yaml`."""
    return yaml.safe_load((ROOT / "tests" / "documented.yaml").read_text())


def commands_run_by(test: str) -> list[str]:
    """Those that the table gives to a test: it takes them as they stand."""
    return table()["run"][test]


@functools.cache
def ups() -> Any:
    """The command line of the project; making it of the functions takes a while."""
    return typer.main.get_command(app)


def find_command(words: list[str]) -> tuple[Any, list[str]]:
    """The command of `ups` that the words begin with, and the other words."""
    command = ups()
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        assert words[0] in command.commands, f"no command {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
    known = {"--help", *(option for parameter in command.params for option in parameter.opts)}
    assert {word.split("=")[0] for word in words if word.startswith("-")} <= known
    return command, words
