"""A process kept ready: Prefect, torch and the project imported once, one child forked per run.

    python -m deployments.zygote SOCKET      ends when its standard input does

For each connection of `deployments/start.py` a keeper process is forked, which forks the run and
reports its exit code; so runs outlive a restart of this process. The runs are isolated from each
other: environment, working directory, streams, signals, random state and exit codes are their own.
The project's files are looked at before each run: if one has changed, that run imports them anew,
and this process replaces itself. CUDA is never touched here, as a fork could not use it: a run that
trains makes its context as soon as it is forked, beside the rest of its boot; unless other
processes train for it.
"""

from __future__ import annotations

import array
import ctypes
import gc
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path

import numpy

from deployments.settings import refresh_settings, sources_of_settings
from deployments.start import LENGTH, PARAMETERS, STATUS, receive
from deployments.tls import share_tls_contexts
from ups.config import find_config, load_config
from ups.data.connect import read_descriptions
from ups.machine.cuda_context import make_context_beside
from ups.machine.ranks import local_ranks

PACKAGES = ("ups", "tasks", "flows", "deployments")
PREFECT_MODULES = (
    "prefect.engine",
    "prefect.flow_engine",
    "prefect.task_engine",
    "prefect.task_runners",
    "prefect.deployments.steps.core",
    "prefect.deployments.steps.pull",
    "prefect.events.worker",
    "prefect.logging.configuration",
    "prefect.results",
    "prefect.runner",
    "prefect.transactions",
    "prefect.utilities.visualization",
)
PROJECT_MODULES = (
    "flows.train_burgers",
    "ups.data.transfer",
    "ups.data.objectstore",
    "ups.latents.legacy",
    "ups.latents.stream",
    "ups.machine.host",
    "ups.models.latent",
    "ups.models.latent_cnn",
    "ups.pipeline.phases",
    "ups.training.evaluate",
    "ups.training.loop",
)
OTHERS = (
    "anyio._backends._asyncio",
    "boto3",
    "botocore.httpsession",
    "encodings.idna",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "numpy.random",
    "rich._emoji_codes",
)
STDIN = 0
TRAINING_FLOW = "train-burgers"
PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def main() -> None:
    """Import everything, then fork a keeper for each connection until standard input ends."""
    path = Path(sys.argv[1])
    settings = sources_of_settings()
    for name in (*PREFECT_MODULES, *OTHERS, *PROJECT_MODULES):
        importlib.import_module(name)
    share_tls_contexts()
    read_descriptions()
    loaded = project_files()
    listener = _listen(path)
    gc.collect()
    gc.freeze()  # the collector would otherwise touch, and so copy, what is shared
    names = [thread.name for thread in threading.enumerate()]
    if len(names) > 1:  # a fork copies one: a lock that another held stays locked in the child
        print(f"warning: forking beside threads: {', '.join(names)}", flush=True)
    print(f"ready at {path}", flush=True)
    while True:
        readable, _, _ = select.select([listener, STDIN], [], [])
        if STDIN in readable and not os.read(STDIN, 1):
            path.unlink(missing_ok=True)
            return
        if listener in readable:
            connection, _ = listener.accept()
            stale = project_files(loaded) != loaded
            _fork_keeper(listener, connection, settings, stale)
            if stale:
                print("the project's files have changed: starting over", flush=True)
                os.execv(sys.executable, [sys.executable, "-m", "deployments.zygote", str(path)])


def project_files(of: dict[str, tuple[int, int]] | None = None) -> dict[str, tuple[int, int]]:
    """Modification time and size of the project's modules that are loaded, or of those in `of`."""
    paths = of or {
        module.__file__: (0, 0)
        for name, module in list(sys.modules.items())
        if name.split(".")[0] in PACKAGES and module.__file__
    }
    found = {}
    for path in paths:
        try:
            stat = os.stat(path)
        except FileNotFoundError:
            found[path] = (0, 0)
        else:
            found[path] = (stat.st_mtime_ns, stat.st_size)
    return found


def _listen(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)  # only this user may start runs
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    listener.listen(64)
    return listener


def _fork_keeper(
    listener: socket.socket, connection: socket.socket, settings: object, stale: bool
) -> None:
    """Fork twice, so that the keeper belongs to init and this process has nothing to reap."""
    first = os.fork()
    if first:
        connection.close()
        os.waitpid(first, 0)
        return
    if os.fork():
        os._exit(0)
    listener.close()
    try:
        _keep(connection, settings, stale)
    except BaseException:  # noqa: BLE001 (nothing may run on in a copy of the zygote)
        traceback.print_exc()
    os._exit(0)


def _keep(connection: socket.socket, settings: object, stale: bool) -> None:
    """Fork the run, report its exit code; end it if the process that stands in for it is gone."""
    header, ancillary, _, _ = connection.recvmsg(LENGTH.size, socket.CMSG_LEN(3 * 4))
    streams = array.array("i")
    for _, _, data in ancillary:
        streams.frombytes(data)
    request = json.loads(receive(connection, LENGTH.unpack(header)[0]))
    keeper, pid = os.getpid(), os.fork()
    if pid == 0:
        connection.close()
        _end_with(keeper)
        _run(request, list(streams), settings, stale)
    for fd in streams:
        os.close(fd)
    connection.sendall(STATUS.pack(pid))
    child = os.pidfd_open(pid)
    readable, _, _ = select.select([connection, child], [], [])
    if child not in readable:
        os.kill(pid, signal.SIGTERM)
        if not select.select([child], [], [], 30)[0]:
            os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if connection not in readable:
        connection.sendall(STATUS.pack(os.waitstatus_to_exitcode(status)))


def _end_with(parent: int) -> None:
    """Get SIGTERM once the parent is gone: nobody could say any more how this process ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it was gone before
        os._exit(1)


def _run(request: dict[str, object], streams: list[int], settings: object, stale: bool) -> None:
    """Become the flow run that was asked for; does not return."""
    code = 1
    try:
        os.setsid()
        for target, fd in enumerate(streams):
            os.dup2(fd, target)
            os.close(fd)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        os.environ.clear()
        os.environ.update({**request["env"], "UPS_STARTED": "warm"})  # type: ignore[dict-item]
        os.chdir(str(request["cwd"]))
        # Before its config is known: one that trains on the CPU has a context for nothing.
        if os.environ.get("PREFECT__FLOW_NAME") == TRAINING_FLOW and not _has_ranks():
            make_context_beside()
        sys.path[0] = os.getcwd()
        random.seed()
        numpy.random.seed()
        if stale:
            for name in [n for n in sys.modules if n.split(".")[0] in PACKAGES]:
                del sys.modules[name]
        refresh_settings(settings)
        module = str(request["module"])
        sys.modules.pop(module, None)
        sys.argv = [module]
        gc.unfreeze()
        runpy.run_module(module, run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 (what an interpreter does with one: show it, exit 1)
        traceback.print_exc()
    _leave(code)


def _has_ranks() -> bool:
    """Whether other processes are to train for this run, as far as its parameters tell.

    Its config is read for that only where it, or they, name ranks: others lose no time.
    """
    from flows.train_burgers import DEFAULT

    text = os.environ.get(PARAMETERS)
    if not text:
        return False
    try:
        given = json.loads(text)
        name = given.get("config", DEFAULT)
        if "ranks" not in text and "ranks" not in find_config(name).read_text():
            return False
        return local_ranks(load_config(name, given.get("overrides"))) > 1
    except Exception:  # noqa: BLE001 (whatever is wrong with them, the run is going to say it)
        return False


def _leave(code: int) -> None:
    """What an interpreter does at its end, without going back into the zygote's code."""
    import atexit

    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
