"""Imports that the contracts in `pyproject.toml` cannot see: at run time, and through a face."""

import subprocess
import sys
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
PACKAGES = ("ups", "tasks", "flows", "deployments", "speed")


def fresh(script):
    """What the script prints in an interpreter of its own."""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_whole_library_imports_without_prefect():
    files = (ROOT / "ups").rglob("*.py")
    modules = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in files]
    above = ("prefect", "tasks", "flows", "deployments", "speed")
    script = f"import sys, importlib\nfor name in {modules!r}: importlib.import_module(name)\n"
    assert fresh(f"{script}print([name for name in {above} if name in sys.modules])") == "[]"


def test_a_run_imports_neither_torch_at_first_nor_ever_what_shares_latents_unless_it_does():
    # torch loads beside the downloads.
    script = "import sys, flows.train_burgers, ups.pipeline.local_run"
    shares = ("sharing", "remote", "pull", "push", "pulled_stream")
    names = ("torch", *(f"ups.latents.{name}" for name in shares))
    assert fresh(f"{script}; print([n for n in {names} if n in sys.modules])") == "[]"


def test_no_module_imports_a_package_that_imports_it():
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    faces = {m for m in graph.modules if graph.find_children(m)}
    circles = [
        (module, face)
        for face in faces
        for module in graph.find_modules_that_directly_import(face) & graph.find_descendants(face)
        if graph.chain_exists(face, module)
    ]
    assert circles == []
