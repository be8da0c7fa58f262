"""Where a rented machine's script runs here: a recorder for `vastai`, a repository, an image."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from ups.cli.app import app
from ups.vast import script
from ups.vast.launch import SENT
from ups.vast.script import Onstart

ROOT = Path(__file__).parents[2]
CONTAINER_ID = "4711"
# A folder's name that is a command wherever it is not quoted; `canary` would be its trace.
NASTY = """it's "$(touch canary)" `touch canary`; touch canary & $HOME \\ -x *"""
UV = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
PASSED_ON = ("UV_", "PIP_", "SSL_", "REQUESTS_CA")  # how packages are found here
# Speaks like vastai 1.9.1, which ends with 0 whatever the API said.
RECORDER = """#!{python}
import json, os, sys
from pathlib import Path
here = Path(__file__).parent
call = {{"argv": sys.argv[1:], "key": os.environ.get("VAST_API_KEY")}}
with (here / "calls").open("a") as calls:
    calls.write(json.dumps(call) + "\\n")
answers = json.loads((here / "answers").read_text())
left = answers.get(" ".join(sys.argv[1:3]), [])
if left:
    print(left[0].removeprefix("stderr:"), end="",
          file=sys.stderr if left[0].startswith("stderr:") else sys.stdout)
    (here / "answers").write_text(json.dumps(
        {{**answers, " ".join(sys.argv[1:3]): left[1:] or left}}))
"""


@dataclass
class Vastai:
    """An executable `vastai` in `folder` that writes down its calls and answers as told.

    `answers("stop instance", "no", "yes")`: those in turn, the last one again and again; on
    standard error where a text begins with `stderr:`, as JSON where it is no text.
    """

    folder: Path

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        path = self.folder / "vastai"
        path.write_text(RECORDER.format(python=sys.executable))
        path.chmod(0o755)
        (self.folder / "answers").write_text("{}")
        self.answers("stop instance", f"stopping instance {CONTAINER_ID}.\n")

    def answers(self, command: str, *answers: Any) -> None:
        path = self.folder / "answers"
        texts = [a if isinstance(a, str) else json.dumps(a) for a in answers]
        path.write_text(json.dumps({**json.loads(path.read_text()), command: texts}))

    @property
    def calls(self) -> list[dict[str, Any]]:
        path = self.folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def stops(self) -> list[dict[str, Any]]:
        return [c for c in self.calls if c["argv"][:3] == ["stop", "instance", CONTAINER_ID]]


@pytest.fixture
def vastai(tmp_path: Path) -> Vastai:
    return Vastai(tmp_path / "tool")


@pytest.fixture
def ups(tmp_path, monkeypatch, vastai, checkout):
    """`ups(*arguments)`: the output of `ups vast`, in a folder of its own; it ends as expected."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(vastai.folder), prepend=":")
    monkeypatch.setattr(script, "PROJECT_DIR", checkout)
    for name in SENT:
        monkeypatch.delenv(name, raising=False)

    def call(*arguments, exit_code=0):
        result = CliRunner().invoke(app, ["vast", *map(str, arguments)])
        assert result.exception is None or isinstance(result.exception, SystemExit)
        assert result.exit_code == exit_code, result.output
        return result.output

    return call


@dataclass
class Machine:
    """A clean place to run an onstart script in, as Vast would: nothing but PATH and what is given.

    Attributes:
        temporary: its /tmp; a socket's path must be short.
        images: folders before the system's on the PATH.
    """

    folder: Path
    temporary: Path
    vastai: Vastai
    images: tuple[Path, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def mount(self) -> Path:
        return self.folder / f"mount {NASTY}"

    @property
    def work(self) -> Path:
        return self.folder / f"--work {NASTY}"

    @property
    def canaries(self) -> list[Path]:
        return list(self.folder.rglob("canary"))

    @property
    def log(self) -> str:
        return (self.folder / "output").read_text()

    def onstart(self, **values: Any) -> Onstart:
        folders = {"mount": str(self.mount), "work": str(self.work)}
        defaults = {"commit": "0" * 40, "repo": "/nowhere", "parameters": {}}
        return Onstart(**{**folders, **defaults, **values})

    def guarded(self, **values: Any) -> subprocess.Popen[str]:
        """Start a script that has a watchdog."""
        return self.start(self.onstart(auto_shutdown=True, **values))

    def start(self, onstart: Onstart) -> subprocess.Popen[str]:
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        script = self.folder / "onstart.sh"
        script.write_text(onstart.packed())
        path = [self.vastai.folder, *self.images, "/usr/bin", "/bin"]
        env = {
            "PATH": os.pathsep.join(map(str, path)),
            "HOME": str(home),
            "TMPDIR": str(self.temporary),
            "CONTAINER_ID": CONTAINER_ID,
            "CONTAINER_API_KEY": "the-key-of-the-container",
            "UPS_POLL_S": "0.2",
            "UPS_RETRY_S": "0.2",
            "VAST_URL": "http://127.0.0.1:9",  # nobody listens there
            **self.env,
        }
        with (self.folder / "output").open("w") as output:
            process = subprocess.Popen(
                ["bash", script],
                env=env,
                cwd=self.folder,
                stdout=output,
                stderr=output,
                text=True,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def wait_for(self, condition: Callable[[], object], timeout_s: float = 20) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"not after {timeout_s} s:\n{self.log}"
            time.sleep(0.05)

    def watchdog(self) -> int:
        return int(next(self.temporary.glob("*/watchdog")).read_text())

    def end(self) -> None:
        for process in self.started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for path in self.temporary.glob("*/watchdog"):
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                number = int(path.read_text())
                if psutil.Process(number).environ().get("STATE") == str(path.parent):
                    os.killpg(number, signal.SIGKILL)


@pytest.fixture
def machine(tmp_path: Path, vastai: Vastai) -> Iterator[Machine]:
    with tempfile.TemporaryDirectory(prefix="ups-") as temporary:
        made = Machine(tmp_path / "machine", Path(temporary), vastai)
        made.folder.mkdir()
        yield made
        made.end()


@dataclass(frozen=True)
class Repository:
    bare: Path
    commit: str


@pytest.fixture(scope="session")
def git() -> Callable[..., str]:
    """`git(folder, *arguments)`: its output."""
    name = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]

    def run(folder: Path, *arguments: object) -> str:
        command = ["git", *name, *map(str, arguments)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    return run


@pytest.fixture(scope="session")
def committed(git: Callable[..., str]) -> Callable[[Path, str], str]:
    """`committed(folder, message)`: the commit of the folder as it is."""

    def commit(folder: Path, message: str) -> str:
        git(folder, "init", "-qb", "main")
        git(folder, "add", "-A")
        git(folder, "commit", "-qm", message)
        return git(folder, "rev-parse", "HEAD")

    return commit


@pytest.fixture(scope="session")
def repository(tmp_path_factory, git, committed, write_tiny, bucket_sources) -> Repository:
    """A bare repository of the tree as it is here, and a tiny config on the session's bucket."""
    folder = tmp_path_factory.mktemp("repository")
    tree, bare = folder / "tree", folder / "bare.git"
    listed = git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    committed(tree, "the tree")
    write_tiny(
        tree / "deployments" / "configs" / "tiny.yaml",
        name="tiny",
        data__generate=None,
        data__sources=bucket_sources,
        stages__operator__epochs=1,
    )
    commit = committed(tree, "a tiny config")
    git(folder, "clone", "-q", "--bare", tree, bare)
    return Repository(bare, commit)


@pytest.fixture(scope="session")
def checkout(tmp_path_factory, git, repository: Repository) -> Path:
    """A clone as a person has it: `origin` has its commit."""
    folder = tmp_path_factory.mktemp("checkout") / "clone"
    git(folder.parent, "clone", "-q", repository.bare, folder)
    return folder


@pytest.fixture(scope="session")
def package_env() -> dict[str, str]:
    """How uv finds packages here; the cache is the image's, so to speak."""
    cache = subprocess.run([UV, "cache", "dir"], capture_output=True, text=True, check=True)
    env = {k: v for k, v in os.environ.items() if k.startswith(PASSED_ON)}
    find_links = env.get("UV_FIND_LINKS") or env.get("PIP_FIND_LINKS", "")
    return {**env, "UV_CACHE_DIR": cache.stdout.strip(), "UV_FIND_LINKS": find_links}


@pytest.fixture(scope="session")
def new_image() -> Callable[[Path], Path]:
    """`new_image(folder)`: a Python in `folder` without packages; its `bin`, with uv in it."""

    def make(folder: Path) -> Path:
        subprocess.run([UV, "venv", "-q", "--python", sys.executable, folder], check=True)
        (folder / "bin" / "uv").symlink_to(UV)
        return folder / "bin"

    return make


@pytest.fixture(scope="session")
def image(tmp_path_factory, package_env, new_image) -> Path:
    """The `bin` of an image's Python that has the locked torch, and uv."""
    binaries = new_image(tmp_path_factory.mktemp("image") / "venv")
    install = [UV, "pip", "install", "-q", "--python", binaries / "python"]
    locked = [*install, "-c", ROOT / "constraints.txt", "torch"]
    subprocess.run(locked, env={**os.environ, **package_env}, check=True)
    return binaries


@pytest.fixture
def bytecode(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """`bytecode(*folders)`: the environment in which the packages in these folders are compiled.

    It is what this Python has compiled of them, by links; a machine takes 5 s of a processor to
    compile them as it imports. What is not the same file is compiled as ever.
    """
    prefix = tmp_path / "bytecode"
    standard, packages = (Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib"))

    def link(*folders: Path) -> dict[str, str]:
        for compiled, there in ((standard, standard), *((packages, one) for one in folders)):
            for file in compiled.rglob("__pycache__/*.pyc"):
                inside = file.parent.parent.relative_to(compiled)
                if inside.parts[:1] in (("site-packages",), ("test",)):
                    continue
                at = prefix / there.relative_to("/") / inside
                at.mkdir(parents=True, exist_ok=True)
                (at / file.name).hardlink_to(file)
        return {"PYTHONPYCACHEPREFIX": str(prefix)}

    return link
