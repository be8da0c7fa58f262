"""What a check came to: a line for people, and the figures behind it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_args

from pydantic import Field

from ups.config import Model, Parsed

Group = Literal["config", "data", "cache", "memory", "disk", "device", "checkpoint", "estimate"]
GROUPS: tuple[Group, ...] = get_args(Group)
Status = Literal["ok", "warn", "skip", "fault"]


class Check(Model):
    """
    Attributes:
        status: `ok`; `warn`, a run works, but not as was asked for, or slower; `skip`, not
            checked, and the text says why; `fault`, a run would fail or must not be trusted.
        figures: the numbers of the text, in bytes and seconds.
    """

    group: Group
    name: str
    status: Status
    text: str
    figures: dict[str, Any] = Field(default_factory=dict)


class Report(Model):
    """All checks of a config, in the order of the groups."""

    config: str
    checks: tuple[Check, ...]

    @property
    def faults(self) -> list[Check]:
        return [check for check in self.checks if check.status == "fault"]

    @property
    def is_valid(self) -> bool:
        return not self.faults


class Checks(list[Check]):
    """The checks of one group, as they are made."""

    def __init__(self, group: Group) -> None:
        super().__init__()
        self.group = group

    def ok(self, name: str, text: str, **figures: Any) -> None:
        self._add(name, "ok", text, figures)

    def warn(self, name: str, text: str, **figures: Any) -> None:
        self._add(name, "warn", text, figures)

    def skip(self, name: str, reason: str, **figures: Any) -> None:
        self._add(name, "skip", f"not checked: {reason}", figures)

    def fault(self, name: str, text: str, **figures: Any) -> None:
        self._add(name, "fault", text, figures)

    def _add(self, name: str, status: Status, text: str, figures: dict[str, Any]) -> None:
        line = "; ".join(part.strip() for part in text.splitlines() if part.strip())
        self.append(Check(group=self.group, name=name, status=status, text=line, figures=figures))


def replaced_among(parsed: Parsed, keys: Iterable[str]) -> list[str]:
    """The faulty keys that are one of `keys`, hold it, or stand below it."""
    wanted = tuple(keys)
    return [
        faulty
        for faulty in parsed.replaced
        if any(f"{faulty}.".startswith(f"{k}.") or f"{k}.".startswith(f"{faulty}.") for k in wanted)
    ]


def with_defaults(parsed: Parsed, keys: Iterable[str]) -> str:
    """What to add to a figure that was worked out with defaults instead of faulty values."""
    faulty = replaced_among(parsed, keys)
    return f" (with the default of {', '.join(faulty)}, which is faulty)" if faulty else ""
