"""Clone and install by the real script, of a project so small that it takes a moment.

It has the real second half of the script, and a job that says where its torch comes from.
"""

import json
import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYPROJECT = """[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "small"
version = "1"
dependencies = ["torch"]
[tool.hatch.build.targets.wheel]
packages = ["deployments"]
"""
JOB = """import json, os, sys, torch
print("torch from", torch.__file__)
print("arguments", json.dumps(sys.argv[1:]))
print("data in", os.environ["PDEBENCH_ROOT"])
"""
HOSTILE = {"$(touch canary)": "'; touch canary\n`touch canary`", "-x": '"; touch canary; "'}


@pytest.fixture
def small(tmp_path, committed):
    """A repository with two commits."""
    tree = tmp_path / "small"
    for room in ("vast", "machine"):
        (tree / "ups" / room).mkdir(parents=True)
    (tree / "ups" / "machine" / "cgroup.py").write_text("def num_cores(): return 16\n")
    (tree / "deployments").mkdir()
    shutil.copy(ROOT / "ups" / "vast" / "provision.sh", tree / "ups" / "vast")
    (tree / "deployments" / "rented.py").write_text(JOB)
    (tree / "pyproject.toml").write_text(PYPROJECT)
    (tree / "constraints.txt").write_text("numpy==2.0.0\ntorch==77.1.0 ; sys_platform == 'linux'\n")
    for name in ("one", "two"):
        (tree / name).touch()
        committed(tree, name)
    return tree


@pytest.fixture
def image_with(tmp_path, new_image):
    """`image_with("77.1.0+cu130")`: the `bin` of a Python that has such a torch."""

    def make(version):
        folder = tmp_path / f"image-{version}"
        binaries = new_image(folder)
        (site,) = folder.glob("lib/*/site-packages")
        write_torch(site, version)
        return binaries

    return make


def write_torch(site, version):
    (site / "torch").mkdir(parents=True)
    for name in ("__init__", "unused"):
        (site / "torch" / f"{name}.py").touch()
    info = site / f"torch-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
    (info / "WHEEL").write_text("Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")


@pytest.fixture
def run(machine, small, git, package_env, tmp_path):
    """`run(image, **values)`: the script's log, after it ended with 0; uv finds a small torch."""
    built, wheels = tmp_path / "built", tmp_path / "wheels"
    write_torch(built, "77.1.0")
    (built / "torch-77.1.0.dist-info" / "RECORD").touch()
    packed = Path(shutil.make_archive(wheels / "torch", "zip", built))
    packed.rename(wheels / "torch-77.1.0-py3-none-any.whl")

    def call(*images, commit="HEAD", **env):
        machine.images = images
        machine.env = {**package_env, "UV_FIND_LINKS": str(wheels), **env}
        commit = git(small, "rev-parse", commit)
        onstart = machine.onstart(repo=str(small), commit=commit, parameters=HOSTILE)
        assert machine.start(onstart).wait(60) == 0, machine.log
        assert machine.canaries == []
        return machine.log

    return call


def torch_of(log):
    return re.search(r"torch from (.*)/torch/__init__\.py", log)[1]


def test_the_images_torch_is_used_and_a_second_start_goes_on_from_the_first(
    run, image_with, machine, git
):
    image = image_with("77.1.0+cu130")  # the locked version, built for some CUDA
    log = run(image, commit="HEAD~1")
    assert torch_of(log).startswith(str(image.parent))
    assert not list(machine.work.glob("env/lib/*/site-packages/torch*"))
    clone = machine.work / "src"
    assert git(clone, "rev-list", "--count", "--all", "HEAD") == "1"  # shallow
    assert not (clone / "two").exists()
    kept = machine.mount / "data" / "latent_cache" / "kept"
    kept.parent.mkdir(parents=True)
    kept.touch()

    log = run(image, commit="HEAD")
    assert (clone / "two").exists()
    assert kept.exists()
    assert f"data in {machine.mount}/data/pdebench" in log
    arguments = json.loads(re.search(r"^arguments (.*)", log, re.M)[1])
    assert json.loads(arguments[arguments.index("--parameters") + 1]) == HOSTILE
    assert arguments[-3:] == ["--mount", str(machine.mount), "--keep"]  # no --auto-shutdown
    assert (machine.mount / "onstart.log").read_text().count("onstart: install") == 2


def test_another_torch_is_left_alone_and_the_locked_one_installed(run, image_with, machine):
    log = run(image_with("77.1.0a0+nv1"))  # NVIDIA's, of some day before the release
    assert "the image has no torch 77.1.0" in log
    assert torch_of(log).startswith(str(machine.work / "env"))
    unused = machine.work.glob("env/lib/*/site-packages/torch/__pycache__/unused.*.pyc")
    assert len(list(unused)) == 1  # on 16 cores all is compiled at once


@pytest.fixture
def short(small, git, committed):
    """The script ends after the clone."""
    (small / "ups" / "vast" / "provision.sh").write_text('say "cloned $(ls)"\n')
    committed(small, "short")
    git(small, "commit", "-qm", "later", "--allow-empty")


@pytest.mark.usefixtures("short")
def test_a_repository_that_gives_no_single_commit_is_fetched_whole(run, git, machine):
    old = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "protocol.version"}
    log = run(commit="HEAD~1", GIT_CONFIG_VALUE_0="0", **old)
    said = ("does not give commit", "fetching all branches and tags", "cloned")
    assert [text for text in said if text not in log] == []
    assert git(machine.work / "src", "log", "--format=%s", "-1") == "short"


@pytest.mark.usefixtures("short")
def test_a_machine_without_git_gets_it_from_its_packages(run, tmp_path):
    tools, bash = tmp_path / "tools", shutil.which("bash")
    tools.mkdir()
    for name in ("bash", "cat", "date", "env", "gzip", "base64", "ls", "mkdir", "mktemp", "tee"):
        (tools / name).symlink_to(shutil.which(name))
    apt = tools / "apt-get"
    apt.write_text(
        f'#!{bash}\necho "apt-get $*"\n'
        f'[[ $1 == update ]] || echo "exec {shutil.which("git")} \\"\\$@\\"" >{tools}/git\n'
        f"{shutil.which('chmod')} -f +x {tools}/git\ntrue\n"
    )
    apt.chmod(0o755)
    log = run(PATH=str(tools))
    assert "apt-get install -yqq --no-install-recommends ca-certificates git" in log
    assert "cloned" in log
