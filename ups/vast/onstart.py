"""The script that a rented machine runs whenever it starts: values, quoted, before a fixed text.

Nothing but the values differs between two launches, and they stand in assignments alone, so that no
value can become a command. Secrets are not among them: those come by the machine's environment.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import shlex
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from ups.config import Model
from ups.errors import VastError
from ups.vast import defaults
from ups.vast.server import check_url

HERE = Path(__file__).parent
# https://docs.vast.ai/api-reference: "`onstart` field is limited to 4048 characters".
MAX_PACKED = 4048
SHEBANG = "#!/usr/bin/env bash\n"
AS_THEY_ARE = "# shellcheck disable=SC2016  # whatever looks like a command below is a mere value\n"
Hours = Annotated[float, Field(gt=0, le=24 * 31)]


class Onstart(Model):
    """What the script is made from.

    Attributes:
        repo, commit: what is cloned; the commit as 40 hex digits.
        parameters: of the flow.
        mount: the machine's folder for data, latent cache, runs and logs.
        work: its folder for the clone and the environment.
        api_url: of the Prefect server; None: as the machine's environment has it.
        auto_shutdown: stop the instance when the run is done, has failed or hangs.
        max_hours: after which it is stopped whatever it does.
        max_stall_hours: without any progress, after which it is stopped.
    """

    repo: str = Field(min_length=1)
    commit: str = Field(pattern=r"^[0-9a-f]{40}$")
    parameters: dict[str, Any]
    mount: str = defaults.MOUNT
    work: str = defaults.WORK
    api_url: str | None = None
    auto_shutdown: bool = False
    max_hours: Hours = defaults.MAX_HOURS
    max_stall_hours: Hours = defaults.MAX_STALL_HOURS

    @field_validator("mount", "work")
    @classmethod
    def _usable_as_a_folder(cls, path: str) -> str:
        if not path.startswith("/"):
            raise ValueError("expected an absolute path")
        if re.search(r"[:\x00-\x1f\x7f]", path):
            raise ValueError("holds a colon or a control character, which PATH cannot hold")
        return path

    @field_validator("repo")
    @classmethod
    def _one_line(cls, repo: str) -> str:
        if re.search(r"[\x00-\x1f\x7f]", repo):
            raise ValueError("holds a control character")
        return repo

    @field_validator("api_url")
    @classmethod
    def _usable_as_an_address(cls, url: str | None) -> str | None:
        if url is not None:
            check_url(url)
        return url

    def script(self) -> str:
        """What `.vast/onstart.sh` holds, to be read by people."""
        return f"{SHEBANG}{AS_THEY_ARE}{self._head()}{_text('onstart.sh')}"

    def packed(self) -> str:
        """The same in few characters, as Vast takes it.

        Raises:
            VastError: they are still too many.
        """
        text = re.sub(r"^ *#.*\n", "", _text("onstart.sh"), flags=re.M)
        squeezed = gzip.compress(f"{self._head()}{text}".encode(), 9, mtime=0)
        packed = (
            f"{SHEBANG}# .vast/onstart.sh, packed\n"
            f"s=$(base64 -d <<<{base64.b64encode(squeezed).decode()} | gzip -d)\n"
            'exec bash -c "$s" onstart\n'
        )
        if len(packed) > MAX_PACKED:
            raise VastError(
                f"the onstart script has {len(packed)} characters when packed, Vast takes "
                f"{MAX_PACKED}: move overrides from the command line into the config"
            )
        return packed

    def _head(self) -> str:
        values = {
            "REPO": self.repo,
            "COMMIT": self.commit,
            "PARAMETERS": json.dumps(self.parameters),
            "MOUNT": self.mount,
            "WORK": self.work,
            "API_URL": self.api_url or "",
            "AUTO_SHUTDOWN": str(int(self.auto_shutdown)),
            "MAX_TOTAL_S": str(round(self.max_hours * 3600)),
            "MAX_STALL_S": str(round(self.max_stall_hours * 3600)),
        }
        return "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())


def _text(name: str) -> str:
    return (HERE / name).read_text()
