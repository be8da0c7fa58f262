"""Which folders of runs go, and that none goes in which a run is."""

import subprocess
import sys

import pytest

from ups.errors import RunError
from ups.runs.folder import let_go, open_run_dir
from ups.runs.index import find_runs
from ups.runs.prune import plan_prune, remove
from ups.runs.record import recorded


@pytest.fixture
def made(tiny_config):
    """The config of three runs that ended, and their folders, the newest first."""
    config, folders = tiny_config(), []
    for day in (1, 2, 3):
        folder = config.runs_dir / f"2026010{day}-120000-{config.name}-run{day}"
        folder.mkdir(parents=True)
        with recorded(open_run_dir(config, f"run{day}")):
            pass
        folders.insert(0, folder)
    return config, folders


def planned(config, **limits):
    return [run.folder for run in plan_prune(find_runs(config.runs_dir), **limits)]


def test_without_a_limit_all_stay(made, ups_on):
    config, folders = made
    assert planned(config) == []
    code, output, _ = ups_on(config)("runs", "prune", "--dir", str(config.runs_dir))
    assert (code, output.startswith("removed 0 of 3 runs, 0 B of ")) == (0, True), output
    assert all(folder.is_dir() for folder in folders)


def test_the_newest_stay_and_the_old_go(made, ups_on):
    config, folders = made
    assert planned(config, keep=2) == folders[2:]
    assert planned(config, older_than_s=3600) == []  # by their records they began just now
    assert planned(config, older_than_s=0) == folders
    ups = ups_on(config)
    where = ("--dir", str(config.runs_dir))
    assert "would remove 2 of 3" in ups("runs", "prune", "--keep", "1", "--dry-run", *where)[1]
    assert all(folder.is_dir() for folder in folders)
    assert "removed 2 of 3" in ups("runs", "prune", "--keep", "1", *where)[1]
    assert [folder.is_dir() for folder in folders] == [True, False, False]


def test_a_run_that_goes_on_stays(made):
    config, folders = made
    with recorded(open_run_dir(config, "run1")):
        assert planned(config, keep=0) == folders[:2]
        script = "import sys; from pathlib import Path; from ups.runs.prune import remove\n"
        command = [sys.executable, "-c", script + "print(remove(Path(sys.argv[1])))", folders[2]]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout == "False\n"
    let_go(folders[2])
    assert remove(folders[2])
    assert not folders[2].exists()


def test_a_folder_that_cannot_be_removed_is_named(made):
    _, folders = made
    (folders[0] / ".lock").unlink()
    (folders[0] / ".lock").mkdir()
    with pytest.raises(RunError, match=rf"{folders[0]} cannot be removed: .*Is a directory"):
        remove(folders[0])
