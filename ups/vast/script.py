"""The script that a rented machine runs whenever it starts, and the commit that it clones.

The machine has no key, and sees what was pushed. Nothing but the values differs between two
launches, and they stand in assignments alone, so that no value can become a command. Secrets are
not among them: those come by the machine's environment.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from ups import PROJECT_DIR
from ups.config import CONFIG_DIR, PROJECT_CONFIGS, Model
from ups.errors import ConfigError, VastError
from ups.vast import MAX_HOURS, MAX_STALL_HOURS, MOUNT, WORK

FIRST_HALF = Path(__file__).with_name("onstart.sh")
NEEDED = ("constraints.txt", "ups/vast/provision.sh")  # what the script finds in its clone
SSH_FORM = re.compile(r"(?:ssh://)?[\w.-]+@([\w.-]+)(?::(?!\d)|(?::\d+)?/)(.+)")
PORTS = {"http": 80, "https": 443}
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
    mount: str = MOUNT
    work: str = WORK
    api_url: str | None = None
    auto_shutdown: bool = False
    max_hours: Hours = MAX_HOURS
    max_stall_hours: Hours = MAX_STALL_HOURS

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
        if url is None:
            return None
        parts = urlsplit(url)
        if parts.username is not None or parts.password is not None:
            raise ValueError("holds a login: send PREFECT_API_AUTH_STRING with `setup-env`")
        if parts.scheme not in PORTS or not parts.hostname:
            raise ValueError("expected an address such as https://prefect.example.org/api")
        if parts.port == 0:  # a larger one than there are, urlsplit refuses itself
            raise ValueError("Port out of range 1-65535")
        return url

    def script(self) -> str:
        """What `.vast/onstart.sh` holds, to be read by people."""
        return f"{SHEBANG}{AS_THEY_ARE}{self._head()}{FIRST_HALF.read_text()}"

    def packed(self) -> str:
        """The same in few characters, as Vast takes it.

        Raises:
            VastError: they are still too many.
        """
        text = re.sub(r"^ *#.*\n", "", FIRST_HALF.read_text(), flags=re.M)
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


@dataclass(frozen=True, slots=True)
class Source:
    """A commit, and where it is cloned from.

    Attributes:
        commit: 40 hex digits.
        differs: files here are not as in the commit.
        pushed: a branch of the remote has the commit; assumed of an address that was given.
    """

    repo: str
    commit: str
    differs: bool = False
    pushed: bool = True


def find_source(
    repo: str | None, commit: str, config: str, project_dir: Path | None = None
) -> tuple[Source, str]:
    """The source, and the config as the clone knows it: a name, or a path in the repository.

    Args:
        repo: None: the remote `origin` of the repository here.
        config: a name in deployments/configs, or a path.
    Raises:
        ConfigError: git knows no such commit or remote, the address holds a login, or the
            commit lacks the config or holds another one than lies here.
    """
    project_dir = project_dir or PROJECT_DIR
    found = _git(project_dir, "rev-parse", "--verify", "--end-of-options", f"{commit}^{{commit}}")
    if found is None:
        raise ConfigError(f"--commit: found {commit!r}, which git does not know in {project_dir}")
    for path in NEEDED:
        if _git(project_dir, "cat-file", "-e", f"{found}:{path}") is None:
            raise ConfigError(f"commit {found[:12]} has no {path}: take a later one with --commit")
    known = _config_in_clone(config, found, project_dir)
    differs = _git(project_dir, "diff", "--quiet", found, "--") is None
    pushed = bool(repo or _git(project_dir, "branch", "--remotes", "--contains", found))
    repo = repo or _origin(project_dir)
    if _holds_login(repo):
        raise ConfigError(
            "--repo: holds a login, which would stand in the script: leave it out, and let "
            "`ups vast setup-env --name GIT_CONFIG_COUNT …` send git what it needs"
        )
    return Source(repo, found, differs, pushed), known


def _holds_login(repo: str) -> bool:
    """A password, or the user of an address by http, which is where tokens stand."""
    try:
        parts = urlsplit(re.sub(r"^\w+::", "", repo))  # git's transport::address
    except ValueError:  # it is no address, and git will say so: better a refusal than a leak
        return "@" in repo
    by_http = parts.scheme in ("http", "https")  # in lower case, however it was written
    return parts.password is not None or (by_http and parts.username is not None)


def _config_in_clone(config: str, commit: str, project_dir: Path) -> str:
    own = project_dir / "deployments" / "configs"  # all that the machine knows by name
    named = (own if CONFIG_DIR == PROJECT_CONFIGS else CONFIG_DIR) / f"{config}.yaml"
    path = (named if named.is_file() else Path(config)).resolve()
    if not path.is_relative_to(project_dir):
        raise ConfigError(
            f"--config: found {config!r}, expected a name in deployments/configs or a file in "
            f"{project_dir}, which is all that the machine gets"
        )
    inside = str(path.relative_to(project_dir))
    if _git(project_dir, "cat-file", "-e", f"{commit}:{inside}") is None:
        raise ConfigError(f"--config: {inside} is not in commit {commit[:12]}: commit and push it")
    if _git(project_dir, "diff", "--quiet", commit, "--", f":(literal){inside}") is None:
        raise ConfigError(
            f"--config: {inside} differs from commit {commit[:12]}: commit and push it"
        )
    return config if path == own / f"{config}.yaml" else inside


def _origin(project_dir: Path) -> str:
    url = _git(project_dir, "remote", "get-url", "origin")
    if not url:
        raise ConfigError(f"{project_dir} has no remote `origin`: give the address with --repo")
    ssh = SSH_FORM.fullmatch(url)
    return f"https://{ssh[1]}/{ssh[2]}" if ssh else url


def _git(project_dir: Path, *arguments: str) -> str | None:
    """Its output; None where it fails."""
    done = subprocess.run(["git", *arguments], cwd=project_dir, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None
