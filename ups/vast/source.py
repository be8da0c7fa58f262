"""Which commit a rented machine clones, and from where: it has no key, and sees what was pushed."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ups.config import CONFIG_DIR
from ups.errors import ConfigError

PROJECT_DIR = CONFIG_DIR.parents[1]
NEEDED = ("constraints.txt", "ups/vast/provision.sh")  # what the onstart script finds in its clone
SSH_FORM = re.compile(r"(?:ssh://)?[\w.-]+@([\w.-]+)(?::(?!\d)|(?::\d+)?/)(.+)")


@dataclass(frozen=True, slots=True)
class Source:
    """
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
    named = project_dir / "deployments" / "configs" / f"{config}.yaml"
    path = named if named.is_file() else Path(config).resolve()
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
    return config if path == named else inside


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
