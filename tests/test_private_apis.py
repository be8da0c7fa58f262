"""What the project uses of others that they promise to nobody: an upgrade fails here, by name.

`PRIVATE` has every name with an underscore, and a test compares it with the code; `UNDOCUMENTED`
has what carries none, but stands in no reference either.
"""

import ast
import asyncio
import inspect
import io
import os
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("ups", "tasks", "flows", "deployments", "speed")
DOCUMENTED = {"_fields", "_replace", "_asdict", "_exit"}  # of named tuples, and of `os`


def takes(path, call):
    """What `path` names can be called with these arguments, as `call` writes them."""
    words = call.split()
    keywords = {word.removesuffix("="): None for word in words if word.endswith("=")}
    inspect.signature(resolve_name(path)).bind(*words[: len(words) - len(keywords)], **keywords)


def cancellation_manager():
    from prefect.runner._cancellation_manager import CancellationManager

    parts = dict.fromkeys(("process_manager", "hook_runner", "state_proposer", "event_emitter"))
    assert CancellationManager(**parts, client="client")._client == "client"
    takes(f"{CancellationManager.__module__}:CancellationManager.cancel_by_id", "self id")
    takes(f"{CancellationManager.__module__}:CancellationManager.cancel", "self flow_run")


def process_worker():
    from prefect.workers.process import ProcessWorker

    worker = ProcessWorker(work_pool_name="pool")
    assert worker._work_pool_name == "pool"
    assert worker._has_successfully_synced is False
    assert asyncio.run(worker.get_and_submit_flow_runs()) == []  # until then it asks nobody
    assert worker._limiter is None
    assert "_limiter = (" in inspect.getsource(ProcessWorker.setup)  # made of `limit`
    takes(f"{ProcessWorker.__module__}:ProcessWorker._release_limit_slot", "self flow_run_id")
    assert "_release_limit_slot" in inspect.getsource(ProcessWorker._submit_run_and_capture_errors)


def control_listener():
    from prefect._internal import control_listener

    control_listener._set_intent("cancel")  # in place of what the worker announces
    assert control_listener.get_intent() == "cancel"
    control_listener.clear_intent()
    assert control_listener.get_intent() is None


def deployment_client():
    from prefect.client.orchestration import PrefectClient
    from prefect.client.orchestration._deployments.client import DeploymentAsyncClient as Client

    takes(f"{Client.__module__}:{Client.__name__}.read_deployment_by_name", "self name")
    assert PrefectClient.read_deployment_by_name is Client.read_deployment_by_name


def cli_of_deploy():
    assert find_spec("prefect.cli.deploy._core")  # what `prefect deploy` imports only when it runs


def block_type_slug():
    from tasks.cache import ValidEntries

    assert ValidEntries.get_block_type_slug() == "valid-latent-entries"


def sync(tmp_path):
    from prefect.filesystems import LocalFileSystem

    (tmp_path / "file").write_bytes(b"content")
    blocks = LocalFileSystem(basepath=str(tmp_path))

    async def beside_a_loop():
        return blocks.read_path("file", _sync=True), await blocks.aread_path("file")

    assert asyncio.run(beside_a_loop()) == (b"content", b"content")


def end_of_an_interpreter():
    script = """if True:
        import atexit, os, threading, time
        atexit.register(print, "exit function", flush=True)
        threading.Thread(target=lambda: (time.sleep(0.1), print("thread", flush=True))).start()
        threading._shutdown()
        atexit._run_exitfuncs()
        os._exit(3)
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("thread\nexit function\n", 3), done.stderr


def end_of_threads():
    from concurrent.futures import thread  # which has a call of its own there

    assert thread.__name__ in [call.func.__module__ for call in threading._threading_atexits]
    assert "_threading_atexits" in inspect.getsource(threading._shutdown)


def raw_stream():
    from botocore.response import StreamingBody

    raw = io.BytesIO(b"body")
    assert StreamingBody(raw, 4)._raw_stream is raw
    takes("urllib3:HTTPResponse.shutdown", "self")


def fp():
    from http.client import HTTPResponse

    from urllib3 import HTTPResponse as Response

    raw = io.BytesIO(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody")
    inner = HTTPResponse(SimpleNamespace(makefile=lambda _mode: raw))
    inner.begin()
    response, buffer = Response(inner, preload_content=False), bytearray(8)
    assert response._fp is inner
    assert (inner.length, inner.isclosed()) == (4, False)
    assert (response._fp.readinto(buffer), buffer[:4]) == (4, b"body")
    assert (inner.length, inner.isclosed()) == (0, True)


def foreach():
    import torch

    ones, weight = [torch.ones(2), torch.ones(3)], torch.tensor(0.5)
    drift = torch._foreach_sub(ones, [one * 3 for one in ones])
    torch._foreach_mul_(drift, weight)
    torch._foreach_add_(ones, list(drift))
    assert [one.tolist() for one in ones] == [[0, 0], [0, 0, 0]]
    torch._foreach_zero_(drift)
    assert [one.tolist() for one in drift] == [[0, 0], [0, 0, 0]]


def storage_cdata():
    import torch

    tensor = torch.zeros(4)
    assert tensor[1:].untyped_storage()._cdata == tensor.untyped_storage()._cdata
    assert tensor.clone().untyped_storage()._cdata != tensor.untyped_storage()._cdata


def dispatch_mode():
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    seen = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append((func._schema.is_mutable, tree_leaves((args, kwargs or {}))))
            return func(*args, **(kwargs or {}))

    one, two = torch.ones(2), torch.zeros(2)
    with Mode():
        one.add_(two, alpha=2), one.neg()
    (in_place, leaves), (is_mutable, _) = seen
    assert (in_place, is_mutable) == (True, False)
    assert leaves[0] is one
    assert leaves[1:] == [two, 2]


def litdata_client():
    """It is in the environment of the benchmarks' peers alone; this is the version looked at."""
    assert "litdata==0.2.76\n" in (ROOT / "speed" / "requirements.txt").read_text()


CHECKS = {
    block_type_slug: "_block_type_slug",
    cancellation_manager: "_client prefect.runner._cancellation_manager",
    cli_of_deploy: "prefect.cli.deploy._core",
    deployment_client: "prefect.client.orchestration._deployments.client",
    dispatch_mode: "_schema torch.utils._python_dispatch torch.utils._pytree",
    end_of_an_interpreter: "_run_exitfuncs _shutdown",
    end_of_threads: "_threading_atexits",
    litdata_client: "_OBSTORE_CLIENT_OPTIONS",
    fp: "_fp",
    foreach: "_foreach_add_ _foreach_mul_ _foreach_sub _foreach_zero_",
    control_listener: "_set_intent prefect._internal",
    process_worker: "_has_successfully_synced _limiter _work_pool_name",
    raw_stream: "_raw_stream",
    storage_cdata: "_cdata",
    sync: "_sync",
}
PRIVATE = {name: check for check, names in CHECKS.items() for name in names.split()}
UNDOCUMENTED = {  # how each is called: positional arguments, and keywords with `=`
    "botocore.loaders:create_loader": "data_path",
    "botocore.session:Session.register_component": "self name component",
    "prefect.client.orchestration:SyncPrefectClient.set_task_run_name": "self id name",
    "prefect.context:refresh_global_settings_context": "",
    "prefect.events.clients:get_events_subscriber": "filter=",
    "prefect.filesystems:LocalFileSystem.aread_path": "self path",
    "prefect.plugins:register_hook": "hook",
    "prefect.results:ResultRecordMetadata.load_bytes": "content",
    "prefect.server.concurrency.lease_storage.filesystem:ConcurrencyLeaseStorage": "",
    "prefect.workers.process:ProcessWorker.get_and_submit_flow_runs": "self",
    "tensorboard.summary.writer.event_file_writer:EventFileWriter": "folder",
    "torch.cuda:graph": "graph stream= capture_error_mode=",
    "torch.distributed.elastic.multiprocessing:DefaultLogsSpecs": "log_dir=",
    "torch.distributed.launcher.api:LaunchConfig": "min_nodes= max_nodes= nproc_per_node= run_id= "
    "rdzv_backend= rdzv_endpoint= local_addr= max_restarts= monitor_interval= start_method= "
    "logs_specs= shutdown_timeout=",
    "torch.distributed.launcher.api:elastic_launch": "config function",
    "torch.optim.adamw:adamw": "params grads means squares max_squares steps fused= capturable= "
    "amsgrad= beta1= beta2= lr= weight_decay= eps= maximize=",
}


@pytest.fixture(scope="module")
def private_names():
    """Name → the files of the project that use it."""
    users = {}
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for name in set(foreign(ast.parse(path.read_text()))):
            users.setdefault(name, []).append(str(path.relative_to(ROOT)))
    return users


@pytest.mark.parametrize("name", PRIVATE)
def test_a_private_name_is_there_and_does_what_it_did(name, private_names, request):
    print("used in", private_names.get(name))
    check = PRIVATE[name]
    check(*map(request.getfixturevalue, inspect.signature(check).parameters))


def test_every_private_name_of_others_in_the_code_is_held_by_a_check(private_names):
    assert {name: users for name, users in private_names.items() if name not in PRIVATE} == {}
    assert PRIVATE.keys() - private_names.keys() == set(), "nothing uses these any more"


@pytest.mark.parametrize("path", UNDOCUMENTED)
def test_what_no_reference_describes_takes_the_arguments_that_it_is_given(path):
    takes(path, UNDOCUMENTED[path])


def test_prefects_lock_managers_have_the_methods_that_ours_has_and_no_others():
    from prefect.locking.protocol import LockManager

    from tasks.locks import FlockManager

    def methods(of):
        found = inspect.getmembers(of, inspect.isfunction)
        return {n: [*inspect.signature(f).parameters] for n, f in found if not n.startswith("_")}

    assert methods(FlockManager) == methods(LockManager)


def test_every_module_that_a_warm_start_imports_is_there():
    from deployments.zygote import OTHERS, PREFECT_MODULES

    assert [name for name in (*PREFECT_MODULES, *OTHERS) if find_spec(name) is None] == []


def test_prefect_knows_every_setting_that_the_stack_makes(tmp_path, monkeypatch):
    import prefect.settings

    from deployments.layout import Stack

    monkeypatch.setenv("UPS_STACK_DIR", str(tmp_path))
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    names = [name for name in Stack.find().prefect_env() if name.startswith("PREFECT_")]
    assert [name for name in names if not hasattr(prefect.settings, name)] == []


def test_the_stand_in_for_nvml_has_the_functions_of_the_real_one(make_nvml):
    import pynvml

    for name in filter(lambda name: name.startswith("nvml"), vars(make_nvml)):
        own = [*inspect.signature(getattr(make_nvml, name)).parameters][1:]
        inspect.signature(getattr(pynvml, name)).bind(*own)


def foreign(tree):
    """Names with an underscore that a file uses, but does not make itself."""
    nodes = list(ast.walk(tree))
    own = {node.name for node in nodes if hasattr(node, "name")} | DOCUMENTED
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            own.add(node.attr)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            own.add(node.target.id)
    for node in nodes:
        match node:
            case ast.Attribute(attr=name) if name not in own:
                names = [name]
            case ast.keyword(arg=str(name)):
                names = [name]
            case ast.Import(names=modules):
                names = [module.name for module in modules]
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] not in PACKAGES:
                names = [module, *(alias.name for alias in node.names)]
            case ast.ClassDef(bases=[_, *_], body=body):  # what it overrides
                targets = [t for line in body if isinstance(line, ast.Assign) for t in line.targets]
                names = [target.id for target in targets if isinstance(target, ast.Name)]
            case _:
                names = []
        yield from (name for name in names if any(map(is_private, name.split("."))))


def is_private(name):
    return name.startswith("_") and not name.startswith("__")
