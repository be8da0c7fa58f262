"""README.md and CONTRIBUTING.md against reality; no command of theirs is run."""

import inspect
import os
import re
import shlex

import pytest
import typer
import yaml

from deployments import layout
from deployments.cli import app
from deployments.stack import POOLS
from flows.benchmark_startup import benchmark_startup
from flows.train_burgers import train_burgers
from ups.cli_options import parse_settings
from ups.config import load_config
from ups.startup.scenarios import choose

PAGES = ("README.md", "CONTRIBUTING.md")
ROOT = layout.PROJECT_DIR
TEXT = {page: (ROOT / page).read_text() for page in PAGES}
MAX_PICTURE_BYTES = 300_000
SHELL = ("source", "set", "export")
TOOLS = ("pre-commit", "pytest", "ruff", "vastai")


def commands() -> list[str]:
    """The lines of the pages' bash fences, cut at && and ;."""
    fences = [
        fence for text in TEXT.values() for fence in re.findall(r"```bash\n(.*?)```", text, re.S)
    ]
    lines = [line for fence in fences for line in fence.splitlines() if line.strip()]
    return list(dict.fromkeys(part.strip() for line in lines for part in re.split("&&|;", line)))


def linked() -> list[str]:
    """Targets of links and pictures in this repository."""
    targets = [t for text in TEXT.values() for t in re.findall(r"\]\(([^)]+)\)", text)]
    return [target for target in targets if not target.startswith("http")]


def named_paths() -> list[str]:
    """What stands in backquotes in the first column of the file map, and paths in running text."""
    files = TEXT["README.md"].partition("\n## Files\n")[2].partition("\n## ")[0]
    paths = [
        p for row in files.splitlines() for p in re.findall(r"`([\w./]+)`", row[: row.find("|", 1)])
    ]
    suffixed = r"`((?:ups|tasks|flows|tests|deployments)/[\w./]*)`"
    return paths + [p for text in TEXT.values() for p in re.findall(suffixed, text)]


def parse_ups(arguments: list[str]) -> dict[str, object]:
    """Values of an `ups` command by name, without running it; fails on an unknown option."""
    command = typer.main.get_command(app)
    while hasattr(command, "commands") and not arguments[0].startswith("-"):
        assert arguments[0] in command.commands, f"no command {arguments[0]!r}"
        command = command.commands[arguments[0]]
        arguments = arguments[1:]
    if arguments[:1] == ["--help"] or hasattr(command, "commands"):  # what is shown at once
        known = {option for parameter in command.params for option in parameter.opts}
        assert set(arguments) <= known | {"--help"}
        return {}
    return dict(command.make_context(command.name, list(arguments)).params)


def check_parameters(given: list[str]) -> None:
    """`KEY=VALUE` of the flow: known names, and a config that loads with them."""
    parameters = dict(text.split("=", 1) for text in given)
    assert parameters.keys() <= inspect.signature(train_burgers.fn).parameters.keys()
    overrides = yaml.safe_load(parameters.get("overrides", "{}"))
    load_config(parameters.get("config", "smoke"), overrides)


def check_ups(command: str, parsed: dict[str, object]) -> None:
    """What an `ups` command is given exists: parameters of its flow, scenarios, a config."""
    if command == "run":
        load_config(parsed["config"])
        check_parameters(parsed["param"] or [])
    elif command == "benchmark":
        choose(parsed["scenarios"].split(","), has_gpu=False)
        given = {text.split("=", 1)[0] for text in parsed["param"] or []}
        assert given <= inspect.signature(benchmark_startup.fn).parameters.keys()
    else:
        assert command == "report"


def check_prefect(arguments: list[str]) -> None:
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    names = {deployment["name"] for deployment in deployments}
    match [a for a in arguments if a != "--no-prompt"]:
        case ["deployment", "run", name, *options]:
            assert name.removeprefix("train-burgers/") in names
            assert options[::2] == ["-p"] * (len(options) // 2)
            check_parameters(options[1::2])
        case ["worker", "start", "--pool", pool]:
            assert pool in POOLS
        case ["deploy", "--name", name]:
            assert name in names
        case other:
            pytest.fail(f"an unknown form: prefect {shlex.join(other)}")


@pytest.mark.parametrize("command", commands())
def test_a_command_exists_with_its_options(command):
    words = shlex.split(command)
    name, arguments = os.path.basename(words[0]), words[1:]
    if name == "make":
        target, *variables = arguments
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)
        for variable in variables:
            key, options = variable.split("=", 1)
            assert key == "ARGS"
            check_ups(target, parse_ups([target, *shlex.split(options)]))
    elif name == "ups":
        parsed = parse_ups(arguments)
        if parsed.get("config"):
            load_config(parsed["config"], parse_settings(parsed.get("settings")))
    elif name == "prefect":
        check_prefect(arguments)
    elif name in TOOLS:
        assert f'"{name}"' in (ROOT / "pyproject.toml").read_text()
        assert all((ROOT / a).exists() for a in arguments if "/" in a)
    else:
        assert name in SHELL


def test_the_pages_hold_commands_links_and_paths():
    assert len(commands()) > 10
    assert len(linked()) >= 3
    assert len(named_paths()) > 15


@pytest.mark.parametrize("path", sorted({*linked(), *named_paths()}))
def test_a_named_file_exists(path):
    assert (ROOT / path).exists()


def test_pictures_are_small():
    sizes = {path: (ROOT / path).stat().st_size for path in linked() if path.endswith(".png")}
    assert {path for path, size in sizes.items() if size > MAX_PICTURE_BYTES} == set()


def test_every_variable_in_the_readme_has_a_reader():
    named = set(re.findall(r"\b(?:UPS|PDEBENCH)_[A-Z0-9_]+", TEXT["README.md"]))
    folders = ("ups", "deployments", "flows", "tasks")
    sources = [path.read_text() for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert {name for name in named if not any(name in source for source in sources)} == set()
    assert named
