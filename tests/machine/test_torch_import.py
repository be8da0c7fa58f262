"""What is done before the first `import torch` of a process."""

import gc
import importlib.util
import subprocess
import sys
import threading

import pytest
from typer.testing import CliRunner

from ups.cli import app
from ups.machine.torch_import import collector_at_rest, load_libraries_beside

NAME = "load torch's libraries"
LOADED = """
import sys, threading, time
from ups.machine.torch_import import load_libraries_beside

def is_loaded():
    return "/libtorch_cpu.so" in open("/proc/self/maps").read()

assert not is_loaded()
load_libraries_beside()
(thread,) = [t for t in threading.enumerate() if t.name == "load torch's libraries"]
thread.join()
assert is_loaded()
assert "torch" not in sys.modules
import torch
assert torch.ones(3).sum() == 3
assert torch.get_num_threads() >= 1
"""


def test_the_libraries_are_there_before_torch_is_imported_which_works_with_them():
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.filterwarnings("error")  # of a thread that failed
def test_libraries_that_are_not_there_are_for_the_import_to_miss(monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    found = importlib.util.spec_from_file_location("torch", tmp_path / "torch" / "__init__.py")
    for spec in (found, None):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, spec=spec: spec)
        load_libraries_beside()
        for thread in threading.enumerate():
            if thread.name == NAME:
                thread.join()


def test_nothing_is_loaded_where_torch_is_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", object())
    monkeypatch.setattr(importlib.util, "find_spec", None)
    load_libraries_beside()


def test_the_collector_rests_until_the_imports_are_done_or_have_failed():
    before = gc.get_freeze_count()
    try:
        with collector_at_rest():
            assert not gc.isenabled()
            raise ImportError
    except ImportError:
        assert gc.isenabled()
    assert gc.get_freeze_count() > before
    gc.unfreeze()


def test_train_has_them_loaded_before_it_reads_its_config(monkeypatch):
    asked = []
    monkeypatch.setattr(app, "load_libraries_beside", lambda: asked.append("libraries"))
    assert CliRunner().invoke(app.app, ["train", "missing"]).exit_code == 1
    assert asked == ["libraries"]
