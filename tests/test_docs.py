"""README, CONTRIBUTING and docs/ against reality; no command of theirs is run."""

import inspect
import operator
import os
import pkgutil
import re
import shlex
from itertools import pairwise

import pytest
import yaml

from deployments import rented
from deployments.stack import POOLS
from deployments.sweep import parse_axes, points
from flows.benchmark_startup import benchmark_startup
from flows.train_burgers import train_burgers
from tests.documented import ROOT, TEXT, fenced, find_command, found
from ups.cli.options import parse_settings
from ups.config import RunConfig, load_config
from ups.startup.measure.scenarios import choose

CODE = ("ups", "tasks", "flows", "deployments", "speed")
MAX_PICTURE_BYTES = 300_000
SHELL = ("source", "set", "export", "cd", "git")
ENGINES = ("docker", "kubectl", "helm")  # their files exist; what they are told is not checked
LAUNCHERS = ("torchrun", "srun")  # of what they start it is checked that it exists
SYSTEM = ("sudo",)  # what others than this project are started with
TOOLS = ("dask", "pre-commit", "pytest", "ruff", "vastai")


def links() -> list[tuple[str, str]]:
    """Page and target of each link and picture that stays in this repository."""
    targets = [(page, t) for page, text in TEXT.items() for t in re.findall(r"\]\(([^)]+)\)", text)]
    return [(page, target) for page, target in targets if not target.startswith("http")]


def named_paths() -> list[str]:
    """What stands in backquotes in the first column of the file map, and paths in running text."""
    files = TEXT["README.md"].partition("\n## Files\n")[2]
    rows = [row[: row.find("|", 1)] for row in files.splitlines()]
    of_map = [path for row in rows for path in re.findall(r"`([\w./]+)`", row)]
    folders = "|".join((*CODE, "docs", "tests"))
    return sorted({*of_map, *found(rf"`((?:{folders})/[\w./]*)(?::[\w.]+)?`")})


def named_functions() -> list[str]:
    """`path.py:function` and `module.function` as `module:function` and `module.function`."""
    packages = "|".join(CODE)
    by_path = found(rf"`((?:{packages})/[\w/]+)\.py:([\w.]+)`")
    by_module = found(rf"`((?:{packages})(?:\.\w+)+)`")
    return [f"{path.replace('/', '.')}:{name}" for path, name in by_path] + by_module


def anchors(text: str) -> list[str]:
    """What GitHub makes of the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


def parse_ups(words: list[str]) -> dict[str, object]:
    """Values of an `ups` command by name, without running it; fails on an unknown option."""
    command, words = find_command(words)
    if "--help" in words or hasattr(command, "commands"):  # what is shown at once
        return {}
    return dict(command.make_context(command.name, words).params)


def check_parameters(given: list[str]) -> None:
    """`KEY=VALUE` of the flow: known names, and a config that loads with them."""
    parameters = dict(text.split("=", 1) for text in given)
    assert parameters.keys() <= inspect.signature(train_burgers.fn).parameters.keys()
    overrides = yaml.safe_load(parameters.get("overrides", "{}"))
    load_config(parameters.get("config", "smoke"), overrides)


def check_ups(command: str, parsed: dict[str, object]) -> None:
    """What an `ups` command is given exists: a config, parameters of its flow, scenarios."""
    written = found(r"ups data inspect [^\n]*--config (\S+)")
    if command == "sweep":
        points(parsed["config"], parse_axes(parsed["settings"]))
    elif parsed.get("config") and str(parsed["config"]) not in written:
        load_config(parsed["config"], parse_settings(parsed.get("settings")))
    if command == "run":
        check_parameters(parsed["param"] or [])
    elif command == "benchmark":
        choose(",".join(parsed["scenarios"]).split(","), has_gpu=False)
        given = {text.split("=", 1)[0] for text in parsed["param"] or []}
        assert given <= inspect.signature(benchmark_startup.fn).parameters.keys()


def check_make(target: str, variables: list[str]) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)
    for variable in variables:
        key, options = variable.split("=", 1)
        assert key in ("ARGS", "PYTHON")
        if key == "PYTHON":
            assert re.fullmatch(r"python3\.1[1-9]", options)
            continue
        check_ups(target, parse_ups([target, *shlex.split(options)]))


def check_prefect(arguments: list[str]) -> None:
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    names = {deployment["name"] for deployment in deployments}
    queues = found(r"ups deploy [^\n]*--queue (\w+)")
    of_queues = {f"{name}-{queue}" for name in names for queue in queues}
    match [a for a in arguments if a != "--no-prompt"]:
        case ["deployment", "run", name, *options]:
            assert name.removeprefix("train-burgers/") in names | of_queues
            assert options[::2] == ["-p"] * (len(options) // 2)
            check_parameters(options[1::2])
        case ["worker", "start", "--pool", pool]:
            assert pool in {*POOLS, rented.POOL, *found(r"ups deploy --pool (\S+)")}
        case ["server", "start", "--no-services", "--host", _, "--port", port]:
            assert port.isdigit()
        case ["server", "services", "start"]:
            pass
        case ["automation", "create", "--from-file", path]:
            assert (ROOT / path).exists()
        case ["work-pool", "create", _, "--type", kind, "--base-job-template", path]:
            assert (ROOT / path).exists()
            assert kind in path
        case ["worker", "start", "--pool", pool, "--type", kind]:
            assert (ROOT / "deployments" / "container" / f"{kind}-pool.json").exists()
            assert pool == kind
        case ["deploy", "--prefect-file", path, "--name", name]:
            of_file = yaml.safe_load((ROOT / path).read_text())["deployments"]
            assert name in {deployment["name"] for deployment in of_file}
        case ["deploy", "--name", name]:
            assert name in names
        case other:
            pytest.fail(f"an unknown form: prefect {shlex.join(other)}")


@pytest.mark.parametrize("command", fenced())
def test_a_command_exists_with_its_options(command):
    words = shlex.split(command)
    name, arguments = os.path.basename(words[0]), words[1:]
    if name == "make":
        check_make(arguments[0], arguments[1:])
    elif name == "ups":
        check_ups(arguments[0], parse_ups(arguments))
    elif name == "prefect":
        check_prefect(arguments)
    elif name in ENGINES:
        given = [path for option, path in pairwise(arguments) if option in ("-f", "--values")]
        assert given or arguments[:2] in (["create", "secret"], ["repo", "add"])
        assert all((ROOT / path).exists() for path in given)
    elif name in LAUNCHERS:
        (started,) = [i for i, word in enumerate(arguments) if re.search(r"^ups$|\.sh$", word)]
        if arguments[started] == "ups":
            check_ups(arguments[started + 1], parse_ups(arguments[started + 1 :]))
        else:
            assert (ROOT / arguments[started]).exists()
    elif name in TOOLS:
        assert f'"{name}"' in (ROOT / "pyproject.toml").read_text()
        assert all((ROOT / a).exists() for a in arguments if "/" in a)
    else:
        assert name in SHELL + SYSTEM


@pytest.mark.parametrize("command", found(r"`((?:ups|make) [^`]+|prefect deployment run [^`]+)`"))
def test_a_command_in_running_text_exists_with_its_options(command):
    name, *words = shlex.split(command)
    if name == "ups":  # its values may be left out, or be placeholders
        find_command(words)
    elif name == "make":
        check_make(words[0], words[1:])
    else:
        check_prefect(words)


@pytest.mark.parametrize("path", named_paths())
def test_a_named_file_exists(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize("name", named_functions())
def test_a_named_function_exists(name):
    assert pkgutil.resolve_name(name) is not None


@pytest.mark.parametrize("key", found(rf"`((?:{'|'.join(RunConfig.model_fields)})\.[\w.]+)`"))
def test_a_named_key_of_a_config_exists(key):
    operator.attrgetter(key)(load_config("smoke"))


@pytest.mark.parametrize(("page", "target"), links())
def test_a_link_leads_to_a_file_and_a_heading(page, target):
    file, _, anchor = target.partition("#")
    path = (ROOT / page).parent / file if file else ROOT / page
    assert path.exists()
    assert not anchor or anchor in anchors(path.read_text())


def test_the_readme_lists_every_page_and_every_picture_is_shown_and_small():
    listed = re.findall(r"^\| \[.+?\]\((.+?)\) \| .+ \|$", TEXT["README.md"], re.M)
    assert {"README.md", *listed} == TEXT.keys()
    shown = {((ROOT / page).parent / target).resolve() for page, target in links()}
    pictures = {path: path.stat().st_size for path in (ROOT / "docs").glob("*.png")}
    assert pictures.keys() <= shown
    assert {path for path, size in pictures.items() if size > MAX_PICTURE_BYTES} == set()


def test_every_variable_in_the_pages_has_a_reader():
    named = set(found(r"\b(?:UPS|PDEBENCH)_[A-Z0-9_]+"))
    assert len(named) > 5
    sources = [path.read_text() for folder in CODE for path in (ROOT / folder).rglob("*.py")]
    sources += [(ROOT / path).read_text() for path in ("Makefile", "tests/ui/conftest.py")]
    assert {name for name in named if not any(name in source for source in sources)} == set()


def test_the_pages_hold_what_is_checked():
    assert len(fenced()) > 40
    assert len(links()) > 40
    assert len(named_paths()) > 25
    assert len(named_functions()) > 25
