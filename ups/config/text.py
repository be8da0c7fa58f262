"""YAML as it was meant: what PyYAML would drop, expand or fail at is refused, with its line."""

from __future__ import annotations

from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.reader import ReaderError

from ups.errors import ConfigError

MAX_ALIASED = 10_000  # values that aliases add; each level of a bomb multiplies them
MAX_SHOWN = 80
MERGE = "tag:yaml.org,2002:merge"


def read_yaml(text: str | bytes) -> Any:
    """Read a YAML document.

    Raises:
        ConfigError: it is not UTF-8, not YAML, has a key twice or aliases that multiply: where,
            and what.
    """
    try:
        text = text if isinstance(text, str) else text.decode()
        return yaml.load(text, _Loader)
    except UnicodeDecodeError as error:
        line, byte = error.object.count(b"\n", 0, error.start) + 1, error.object[error.start]
        raise ConfigError(f"line {line}: not UTF-8 (byte 0x{byte:02x}); save it as UTF-8") from None
    except ReaderError as error:
        line = str(text).count("\n", 0, error.position) + 1
        raise ConfigError(
            f"line {line}: not valid YAML: found the character {chr(error.character)!r}"
        ) from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = f"{error.context}, {error.problem}" if error.context else error.problem
        raise ConfigError(f"line {line}: not valid YAML: {problem}") from None
    except RecursionError:
        raise ConfigError("not valid YAML: nested too deeply") from None


def shortened(value: object) -> str:
    """A value's `repr`, as much of it as an error's line has room for."""
    shown = repr(value)
    return shown if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]}…"


class _Loader(yaml.SafeLoader):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._sizes: dict[Node, int] = {}

    def get_single_node(self) -> Node | None:
        node: Node | None = super().get_single_node()
        if node is not None:
            self._check(node)
        return node

    def _check(self, node: Node) -> int:
        """Look at a node before anything is made of it: how many values it comes to."""
        if node not in self._sizes:
            self._sizes[node] = 0
            children: list[Node] = []
            if isinstance(node, SequenceNode):
                children = node.value
            elif isinstance(node, MappingNode):
                _check_keys(node)
                children = [child for pair in node.value for child in pair]
            self._sizes[node] = 1 + sum([self._check(child) for child in children])
        elif self._sizes[node] == 0:
            raise _refused(node, "an alias in it stands for itself")
        if self._sizes[node] - len(self._sizes) > MAX_ALIASED:
            raise _refused(node, f"its aliases come to more than {MAX_ALIASED} values")
        return self._sizes[node]

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, IndexError, OverflowError):  # of a number, or a date
            kind, found = node.tag.rpartition(":")[2], shortened(node.value)
            raise _refused(node, f"found {found}, which cannot be read as {kind}") from None


def _check_keys(node: MappingNode) -> None:
    """Refuse a key that the mapping has twice; what `<<` merges is there to be replaced."""
    lines: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if isinstance(key, ScalarNode) and key.tag != MERGE:
            name = key.tag, key.value
            if name in lines:
                raise _refused(
                    key, f"found the key {key.value!r} again, first in line {lines[name]}"
                )
            lines[name] = key.start_mark.line + 1


def _refused(node: Node, problem: str) -> ConstructorError:
    return ConstructorError(None, None, problem, node.start_mark)
