"""What the doctor found, a line each: how it stands, and the remedy."""

from __future__ import annotations

from typing import Literal

from ups.config import Model
from ups.data.s3errors import redacted
from ups.validate.check import Status

Group = Literal[
    "server", "pool", "worker", "store", "credentials", "disk", "GPU", "versions", "ports"
]


class Finding(Model):
    """One thing that was looked at.

    Attributes:
        status: `ok`; `warn`, works, but not as was meant; `skip`, nothing to look at, which is
            no fault; `fault`, broken.
        what: what was found.
        remedy: what to do about it; empty where all is well.
    """

    group: Group
    name: str
    status: Status
    what: str
    remedy: str = ""

    @property
    def text(self) -> str:
        """Finding and remedy in one line."""
        return f"{self.what}: {self.remedy}" if self.remedy else self.what


class Findings(list[Finding]):
    """Those of one group, as they are made."""

    def __init__(self, group: Group) -> None:
        super().__init__()
        self.group = group

    def add(self, name: str, status: Status, what: str, remedy: str = "") -> None:
        """Take down a finding; text of several lines is made one, and no login is shown."""
        lines = [redacted(" ".join(text.split())) for text in (what, remedy)]
        self.append(
            Finding(group=self.group, name=name, status=status, what=lines[0], remedy=lines[1])
        )

    def ok(self, name: str, what: str) -> None:
        self.add(name, "ok", what)

    def skip(self, name: str, what: str, remedy: str = "") -> None:
        self.add(name, "skip", what, remedy)

    def warn(self, name: str, what: str, remedy: str) -> None:
        self.add(name, "warn", what, remedy)

    def fault(self, name: str, what: str, remedy: str) -> None:
        self.add(name, "fault", what, remedy)
