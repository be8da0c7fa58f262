"""What a check came to: a line for people, and the figures behind it."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import Field

from ups.config import Model

Group = Literal["config", "data", "cache", "memory", "disk", "device", "checkpoint", "estimate"]
GROUPS: tuple[Group, ...] = get_args(Group)
Status = Literal["ok", "warn", "skip", "fault"]


class Check(Model):
    """One thing that was looked at, and how it stands.

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
        """The checks that keep a run from being made."""
        return [check for check in self.checks if check.status == "fault"]

    @property
    def is_valid(self) -> bool:
        """Whether a run can be made; there may be warnings."""
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

    def skip(self, name: str, text: str, **figures: Any) -> None:
        self._add(name, "skip", f"not checked: {text}", figures)

    def fault(self, name: str, text: str, **figures: Any) -> None:
        self._add(name, "fault", text, figures)

    def _add(self, name: str, status: Status, text: str, figures: dict[str, Any]) -> None:
        line = "; ".join(part.strip() for part in text.splitlines() if part.strip())
        self.append(Check(group=self.group, name=name, status=status, text=line, figures=figures))
