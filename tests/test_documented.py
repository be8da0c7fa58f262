"""Each command of the pages is run by a test, or has a reason why CI does not run it."""

import ast
import functools
import os
import re
import shlex
import subprocess
from collections.abc import Iterator

import pytest

from tests.documented import ROOT, documented, table
from tests.live import NEEDS

OF_CI = ".ci/run"
RUN = [(test, command) for test, commands in table()["run"].items() for command in commands]
BY_TESTS = [(test, command) for test, command in RUN if test != OF_CI]
REASONS = table()["not run"]
PLUGINS = ("tests/disks.py", "tests/live.py", "tests/proxy.py", "tests/stand_ins.py")
Functions = dict[str, ast.AST]


@functools.cache
def definitions(path: str) -> Functions:
    """What a file defines at its top, by name; the methods of its classes, too."""
    found: Functions = {}
    for node in ast.parse((ROOT / path).read_text()).body:
        for one in [node, *(node.body if isinstance(node, ast.ClassDef) else [])]:
            if isinstance(one, ast.FunctionDef):
                found[one.name] = one
            elif isinstance(one, ast.Assign):
                found |= {name.id: one for name in one.targets if isinstance(name, ast.Name)}
    return found


def in_reach(path: str) -> Functions:
    """What a test of that file may name: of the file, of the conftests above it, of the plugins."""
    folders = [folder.as_posix() for folder in (ROOT / path).relative_to(ROOT).parents]
    conftests = [f"{folder}/conftest.py" for folder in folders[:-1]]
    imported = re.findall(r"^from (tests\.\S+) import", (ROOT / path).read_text(), re.M)
    modules = [f"{name.replace('.', '/')}.py" for name in imported]
    there = [p for p in (*PLUGINS, *modules, *conftests[::-1], path) if (ROOT / p).exists()]
    return {name: node for p in there for name, node in definitions(p).items()}


def words_of(test: str, examples: dict[str, str]) -> set[str]:
    """The words of all strings in the source of a test, and of what it names, one after another.

    The name of a command stands for the example in its help. What a test that takes examples needs
    (None: no more than a folder) stands for all of those that need the same.
    """
    path, name = test.split("::")
    known = {given: node for given, node in in_reach(path).items() if given != "NEEDS"}
    elsewhere = {command for of_need in NEEDS.values() for command in of_need}
    of_need = {**NEEDS, None: tuple(examples.keys() - elsewhere)}
    takes_examples = "examples_that_need" in {*names_in(known[name])}
    waiting, seen, words = [name], {name}, set()
    while waiting:
        node = known[waiting.pop()]
        for value in (one.value for one in ast.walk(node) if isinstance(one, ast.Constant)):
            if isinstance(value, str):
                words |= set(examples.get(value, value).split())
            if takes_examples and (value is None or isinstance(value, str)):
                words |= {
                    word for name in of_need.get(value, ()) for word in examples[name].split()
                }
        named = {given for given in names_in(node) if given in known} - seen
        seen |= named
        waiting += named
    return words


def names_in(node: ast.AST) -> Iterator[str]:
    """What is used by its name, and arguments, which are fixtures."""
    for one in ast.walk(node):
        if isinstance(one, ast.Name | ast.arg):
            yield one.id if isinstance(one, ast.Name) else one.arg


def made(command: str) -> str:
    """What `make` would run, of the project's own programs the last."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    line = ["make", "--dry-run", *shlex.split(command)[1:]]
    done = subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    return re.findall(r"\.venv/bin/([^;\n]+)", done.stdout)[-1]


def names_and_options(command: str) -> set[str]:
    """Program aside: the words up to the first value, and every option."""
    words = [word.split("=")[0] for word in shlex.split(command)[1:]]
    words = words[2:] if words[:1] == ["-m"] and words[1].startswith("speed") else words
    count = 0
    for word in words:
        if not re.fullmatch(r"[a-z][a-z-]+", word) or word.startswith(("smoke", "burgers")):
            break
        count += 1
    return {*words[:count], *(word for word in words if word.startswith("-"))}


def test_every_command_of_the_pages_has_a_row_and_every_row_is_a_command_of_theirs():
    rows = [command for _, command in RUN] + [c for of in REASONS.values() for c in of]
    assert sorted(set(documented()) - set(rows)) == [], "run by no test, and no reason why"
    assert sorted(set(rows) - set(documented())) == [], "in no page"
    assert sorted({row for row in rows if rows.count(row) > 1}) == []


@pytest.mark.parametrize(("test", "command"), BY_TESTS, ids=[command for _, command in BY_TESTS])
def test_the_test_of_a_command_has_its_words(test, command, commands):
    path, _, name = test.partition("::")
    assert name in definitions(path)
    if "commands_run_by" in ast.unparse(definitions(path)[name]):
        return  # it takes them from the table, as they stand
    given = made(command) if command.startswith("make ") else command
    examples = {name: one.epilog.removeprefix("Example: ") for name, one in commands.items()}
    assert names_and_options(given) - words_of(test, examples) == set()


def test_what_ci_runs_itself_stands_in_its_script():
    script = (ROOT / OF_CI).read_text()
    of_install = re.findall(r"^([\w-]+): install", (ROOT / "Makefile").read_text(), re.M)
    called = re.findall(r"^make (\S+)$", script, re.M)
    assert set(called) <= set(of_install)
    assert {f"make {name}" for name in (*called, "install")} == set(table()["run"][OF_CI])


@pytest.mark.parametrize("reason", REASONS)
def test_the_tests_that_a_reason_names_are_there(reason):
    for path, name in re.findall(r"(tests/[\w/]*(?:\.py)?)(?:::(\w+))?", reason):
        assert (ROOT / path).exists()
        assert not name or name in definitions(path)
