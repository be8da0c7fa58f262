"""`ups clean`: all that the project made goes, and nothing that a person made."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deployments import layout, leftovers
from deployments.cli import clean
from deployments.cli.app import app
from deployments.layout import TOML_HEADER, Stack
from ups.data.stamps import write_stamp
from ups.runs.folder import open_run_dir
from ups.runs.record import recorded
from ups.startup.judge.history import History
from ups.startup.measure.records import BenchmarkRecord

GENERATED = "pdebench/burgers1d/smoke-v2"
RECORD = BenchmarkRecord(
    id="b1", started_at=1e9, machine_id="m", machine={}, versions={}, commit="abc", settings={}
)


def write(path, text="x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def fetched(path, token="t"):
    """A file with the stamp of a fetch; without a token, of a local file that was hashed."""
    write_stamp(write(path), path.stat(), "0" * 64, "etag", token)
    return path


@pytest.fixture
def project(tmp_path, monkeypatch, tiny_config):
    """A clone with everything that the project makes, and a file of a person's beside each."""
    root = tmp_path / "clone"
    monkeypatch.setenv("UPS_STACK_DIR", str(root / ".stack"))
    for module in (clean, layout):
        monkeypatch.setattr(module, "PROJECT_DIR", root)
    write(root / "prefect.yaml")
    write(root / "ups/__init__.py")
    write(root / "ups/__pycache__/a.pyc")
    for name in (".venv", ".venv-3.13"):
        write(root / name / "pyvenv.cfg")
    write(root / ".ui/page.png")
    write(root / "prefect.toml", TOML_HEADER)
    stack = Stack.find()
    stack.remember()
    stack.store_env()
    for name in ("logs/worker.log", "prefect/prefect.db", "deployed.json"):
        write(root / ".stack" / name)
    for name in ("burgers1d_train.h5", "manifest.json"):
        write(root / ".stack/s3" / GENERATED / name)
    fetched(root / "data/pdebench/pdebench/train.h5")
    write(root / "data/pdebench/pdebench/.val.h5.part")
    write(root / "data/latent_cache/0123456789ab/.lock")
    write(root / "data/benchmarks/cold/runs/a")
    return root


@pytest.fixture
def results(project, tiny_config):
    with recorded(open_run_dir(tiny_config(runs_dir=str(project / "runs")), "136fabcd")):
        pass
    History(project / "data/benchmarks").save(RECORD)


def files(root):
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def ups(*arguments, **options):
    done = CliRunner().invoke(app, list(arguments), **options)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_all_that_the_project_made_goes_and_its_folders_too(project):
    before = files(project)
    assert "would go .stack" in ups("clean", "--dry-run")
    assert files(project) == before
    output = ups("clean")
    assert files(project) == ["prefect.yaml", "ups/__init__.py"]
    assert sorted(path.name for path in project.iterdir()) == ["prefect.yaml", "ups"]
    assert re.search(r"removed  \S+ \S+ in ", output.splitlines()[-1])
    assert not ups("down").startswith("on disk")
    assert not (project / ".stack").exists()
    assert ups("clean").endswith(f"removed  0 B in {project}\n")


@pytest.mark.parametrize(
    "name",
    [
        "data/pdebench/mine.h5",
        "data/mine/notes.txt",
        "data/latent_cache/notes.txt",
        "data/benchmarks/mine.csv",
        "runs/notes.txt",
        "runs/20261129-101112-my-notes/plan.txt",
        ".stack/notes.txt",
        ".stack/s3/mine/data.h5",
        f".stack/s3/{GENERATED}/mine.h5",
        "mine.yaml",
        "ups/mine.py",
    ],
)
def test_what_a_person_put_there_stays(project, name):
    write(project / name, "mine")
    ups("clean", "--all")
    assert (project / name).read_text() == "mine"
    left = set(files(project)) - {name, "prefect.yaml", "ups/__init__.py"}
    manifest = f".stack/s3/{GENERATED}/manifest.json"  # which speaks of mine.h5, too
    assert left == ({manifest} if name == f".stack/s3/{GENERATED}/mine.h5" else set())


def test_a_file_in_the_data_folder_goes_only_if_it_is_as_it_was_fetched(project):
    hashed = fetched(project / "data/pdebench/local.h5", token="")
    changed = fetched(project / "data/pdebench/changed.h5")
    changed.write_text("by hand")
    output = ups("clean")
    assert hashed.exists()
    assert changed.exists()
    assert output.count("not fetched by a run") == 2
    assert not list(project.rglob("*.stamp"))


def test_a_toml_and_an_environment_that_are_no_work_of_the_project_stay(project):
    write(project / "prefect.toml", "[api]\n")
    (project / ".venv/pyvenv.cfg").rename(project / ".venv/notes.txt")
    output = ups("clean")
    assert (project / "prefect.toml").exists()
    assert (project / ".venv/notes.txt").exists()
    assert "stays    prefect.toml" in output


def test_a_link_is_removed_and_not_what_it_leads_to(project, tmp_path):
    kept = write(tmp_path / "elsewhere/precious.txt")
    (project / ".venv/pyvenv.cfg").unlink()
    (project / ".venv").rmdir()
    (project / ".venv").symlink_to(kept.parent)
    ups("clean")
    assert kept.exists()
    assert not (project / ".venv").is_symlink()


def test_runs_and_benchmarks_stay_unless_they_are_asked_for(project, results, monkeypatch):
    output = ups("clean")
    assert "stays    runs and benchmarks, " in output
    assert "make clean ARGS=--all" in output
    assert list(project.glob("runs/*-136fabcd"))
    monkeypatch.setattr(clean, "_can_ask", lambda: True)
    ups("clean", input="n\n")
    assert list(project.glob("data/benchmarks/history/*.json"))
    ups("clean", input="y\n")
    assert sorted(path.name for path in project.iterdir()) == ["prefect.yaml", "ups"]


def test_nothing_is_removed_while_the_stack_runs(project, monkeypatch):
    monkeypatch.setattr("deployments.processes.Processes.running", lambda *_: object())
    before = files(project)
    done = CliRunner().invoke(app, ["clean"])
    assert (done.exit_code, "`ups down` first" in done.stderr) == (1, True)
    assert files(project) == before


def test_down_says_what_stays_on_disk(project):
    last = ups("down").splitlines()[-1]
    assert re.match(
        r"on disk  \.venv \S+ KB, \.venv-3\.13 \S+ KB, \.stack \S+ KB, data \S+ KB; `make clean`",
        last,
    )


def test_every_name_in_the_folder_of_a_stack_is_known(project):
    """By those that a stack has left in the tests above; `layout` lists them."""
    listed = re.findall(r"^      (\S+?)[/ ]", layout.__doc__, re.M)
    assert {name.split("/")[0] for name in listed} - {"s3"} <= set(leftovers.STATE)
    assert Path(Stack.find().env_file).name in leftovers.STATE
