"""What keeps a stack from starting, by the real command line; `test_runs` has one that runs."""

import ast
import importlib
import inspect
import shutil
import typing
from contextlib import closing
from pathlib import Path

import pytest

from deployments import stack
from deployments.layout import PROJECT_DIR
from flows.benchmark_startup import benchmark_startup
from flows.train_burgers import train_burgers
from tests.live import wait_until
from ups.config import Model
from ups.data.objectstore import ObjectStore


@pytest.fixture
def live(new_stack, tmp_path):
    with new_stack(tmp_path) as live:
        yield live


def test_a_busy_port_stops_up_before_anything_is_started(live, busy_port):
    elsewhere = "https://me:secret@prefect.example.org/api"
    done = live.ups("up", UPS_S3_PORT=str(busy_port), PREFECT_API_URL=elsewhere)
    assert done.returncode == 1
    note = (
        "note: PREFECT_API_URL names https://…@prefect.example.org/api; this is the stack of this"
    )
    assert note in done.stderr
    assert f"port {busy_port} on 127.0.0.1, wanted for the object store, is taken" in done.stderr
    assert not list(live.stack.folder.glob("processes/*.json"))


def test_a_part_that_dies_while_it_starts_is_reported_with_its_last_words(live):
    done = live.ups("up", RCLONE_TRANSFERS="nonsense")
    assert done.returncode == 1
    assert "object-store ended while it was starting" in done.stderr
    assert "nonsense" in done.stderr


def test_run_refuses_a_bad_config_before_anything_is_started(live):
    done = live.ups("run", "-p", 'overrides={"latent.tokens": 7}')
    assert done.returncode == 1
    assert "latent.tokens: found 7" in done.stderr
    assert not live.stack.folder.exists()


def test_the_object_store_sends_a_large_object_at_once(live, monkeypatch):
    objects = live.stack.folder / "s3" / "bucket"
    objects.mkdir(parents=True)
    with (objects / "large.h5").open("wb") as file:
        file.truncate(4 << 30)  # its MD5 would take seconds
    for name, value in live.stack.store_env().items():
        monkeypatch.setenv(name, value)
    store_part = stack.Part("", lambda: stack._store_answers(live.stack), "")
    stack._start_store(live.stack)
    try:
        with closing(ObjectStore()) as store:
            wait_until(lambda: stack._answers(store_part), 20, 0.05)
            info, opened = store.open_first("bucket", "large.h5", 1 << 20)
            with closing(opened.body):
                assert opened.body.read() == bytes(1 << 20)
    finally:
        live.stack.processes.stop("object-store")
    assert (info.num_bytes, info.version.etag) == (4 << 30, "")
    assert info.version.modified


def modules_of(annotation):
    """Those that define the models of a type, their fields and their bases."""
    if isinstance(annotation, type) and issubclass(annotation, Model):
        yield from (one.__module__ for one in annotation.__mro__ if issubclass(one, Model))
        for field in annotation.model_fields.values():
            yield from modules_of(field.annotation)
    for part in typing.get_args(annotation):
        yield from modules_of(part)


def modules_imported_from(flow):
    """Those that the names in a flow's signature are imported from."""
    tree = ast.parse(Path(inspect.getfile(flow.fn)).read_text())
    (function,) = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name == flow.fn.__name__
    ]
    names = {node.id for node in ast.walk(function.args) if isinstance(node, ast.Name)}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and {alias.name for alias in node.names} & names:
            yield node.module


@pytest.mark.parametrize(
    ("flow", "module"),
    [(train_burgers, "ups.config.models"), (benchmark_startup, "ups.startup.judge.limits")],
)
def test_a_change_of_what_shapes_a_run_form_is_deployed(flow, module):
    hints = typing.get_type_hints(flow.fn, include_extras=True)
    modules = {module for hint in hints.values() for module in modules_of(hint)}
    modules |= set(modules_imported_from(flow)) | {flow.fn.__module__}
    own = {name for name in modules if name.split(".")[0] in ("ups", "tasks", "flows")}
    files = {inspect.getfile(importlib.import_module(name)) for name in own}
    assert own >= {flow.fn.__module__, module}
    assert files <= stack._fingerprint().keys()


def test_a_change_of_a_default_is_another_fingerprint(tmp_path, monkeypatch):
    for name in ("prefect.yaml", *stack.FORM_SOURCES):
        source = PROJECT_DIR / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        copy(source, tmp_path / name)
    monkeypatch.setattr(stack, "PROJECT_DIR", tmp_path)
    seen = {str(stack._fingerprint()) for _ in range(2)}
    for name in ("ups/startup/judge/limits.py", "ups/config/models.py", "prefect.yaml"):
        (tmp_path / name).write_text((tmp_path / name).read_text() + "\n")
        seen.add(str(stack._fingerprint()))
    assert len(seen) == 1 + 3
