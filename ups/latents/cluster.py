"""A Dask cluster that is to encode: connected to, and looked at before anything is built.

Dask is imported when a run asks for it, and not before.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import platform
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ups import PROJECT_DIR, __version__
from ups.background import Background
from ups.config import RunConfig
from ups.data.sources import Staged
from ups.errors import ClusterError, DataError, MissingExtra
from ups.machine.cgroup import num_cores

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)

LIBRARY = "distributed"
CONNECT_S = 8.0
FIRST_WORKER_S = 8.0
WITHIN_S = 28.0  # with all answers: what cannot work is refused within half a minute
LEAST_ANSWER_S = 5.0
REACH_S = 4.0
MOST_NAMED = 3  # workers in one message
SAME = ("torch", "numpy", "distributed")  # beside the project itself and Python
SHARE = "have all workers see training.latent_cache_dir under the same path, and write to it"
RESTART = "install the same commit and the same lock there, and start the worker again"
START = "start it with `dask scheduler`, and a worker on each machine with `dask worker ADDRESS`"


def require_dask(library: str | None = None) -> None:
    """Look for what the engine needs, without importing it.

    Raises:
        MissingExtra: it is not installed.
    """
    library = library or LIBRARY
    if importlib.util.find_spec(library) is None:
        raise MissingExtra(
            f"encode.engine: found dask, which needs {library}, and that is not installed: "
            "pip install -e '.[dask]'"
        )


@contextmanager
def connected(config: RunConfig, sources: Iterable[Staged] = ()) -> Iterator[Client]:
    """A client of the config's cluster, whose workers can encode for this process.

    Args:
        sources: files that they have to see.
    Raises:
        MissingExtra, ClusterError: it is not there, or one of its workers cannot.
    """
    require_dask()
    with ExitStack() as opened:
        address = config.encode.address
        if address is None:
            address = opened.enter_context(_cluster_of_this_machine(config)).scheduler_address
        deadline = time.monotonic() + WITHIN_S
        client = opened.enter_context(_client(address))
        _wait_for_a_worker(client, address)
        check_workers(client, config, sources, deadline)
        yield client


def say_encoding(client: Client) -> None:
    """The line of a build that a cluster makes."""
    threads = client.nthreads()
    log.info(
        "encoding on %d workers, with %d threads, of the Dask cluster at %s; no streaming start: "
        "training begins when all is encoded",
        len(threads),
        sum(threads.values()),
        client.scheduler.address,
    )


def require_cluster(config: RunConfig) -> None:
    """Look for the cluster that the config names, before anything is fetched for it.

    Raises: see `connected`.
    """
    if config.encode.address is None:
        require_dask()
        return
    with connected(config):
        pass


def check_workers(
    client: Client, config: RunConfig, sources: Iterable[Staged], deadline: float
) -> None:
    """Refuse workers that would encode otherwise, or do not share this machine's files.

    Args:
        deadline: when they have to have answered, by the monotonic clock.
    Raises:
        ClusterError: with what is wrong, worker by worker.
    """
    cache_dir = config.training.latent_cache_dir.absolute()
    cache_dir.mkdir(parents=True, exist_ok=True)
    expected = code_identity()
    faults = []
    for worker, found in ask(client, deadline, code_identity).items():
        if isinstance(found, dict):
            differing = [
                f"{name} {found.get(name)}, expected {value}"
                for name, value in expected.items()
                if found.get(name) != value
            ]
        else:
            differing = [f"no ups as here ({type(found).__name__}: {found})"]
        if differing:
            faults.append(f"{worker} has {', '.join(differing)}")
    refuse(faults, RESTART)
    paths = {source.path.absolute(): source.path.stat() for source in sources}
    states = [(path, (stat.st_size, stat.st_mtime_ns)) for path, stat in paths.items()]
    with tempfile.NamedTemporaryFile(dir=cache_dir, prefix=".seen-by-workers-") as token:
        seen = ask(client, deadline, _find_fault, Path(token.name), states)
    faults = [str(fault) for fault in seen.values() if fault]
    refuse(faults, "then run again")


def refuse(faults: Sequence[str], remedy: str) -> None:
    """Say what is wrong with some workers, and what is to be done.

    Raises:
        ClusterError: there is something.
    """
    if faults:
        more = f"; and {len(faults) - MOST_NAMED} more" if len(faults) > MOST_NAMED else ""
        raise ClusterError(
            f"encode.engine: the Dask cluster cannot encode for this run: "
            f"{'; '.join(faults[:MOST_NAMED])}{more}; {remedy}"
        )


def _find_fault(token: Path, states: Sequence[tuple[Path, tuple[int, int]]]) -> str:
    """What a worker lacks of the cache directory and of the staged files; called on it."""
    if not token.exists():
        return f"{worker_name()} does not see {token.parent}: {SHARE}"
    try:
        with tempfile.NamedTemporaryFile(dir=token.parent, prefix=token.name):
            pass
    except OSError as error:
        return f"{worker_name()} cannot write to {token.parent} ({error.strerror}): {SHARE}"
    for path, state in states:
        try:
            check_source(path, state)
        except DataError as error:
            return str(error)
    return ""


@functools.cache
def code_identity() -> dict[str, str]:
    """What has to be the same where an entry is encoded: as it was when this process began to ask.

    A worker that was started before its sources were changed runs the old ones.
    """
    digest = hashlib.sha256()
    for package in ("ups", "tasks"):
        for path in sorted((PROJECT_DIR / package).rglob("*.py")):
            digest.update(f"{path.relative_to(PROJECT_DIR)}\0".encode() + path.read_bytes())
    python = ".".join(platform.python_version_tuple()[:2])
    found = {"ups": __version__, "sources": digest.hexdigest()[:12], "python": python}
    for name in SAME:  # a build for CUDA encodes as one for the CPU does
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name).partition("+")[0]
    return found


def worker_name() -> str:
    """Of this process, as messages name it."""
    return f"process {os.getpid()} of {socket.gethostname()}"


def check_source(path: Path, state: tuple[int, int]) -> None:
    """Refuse a file that is not the one that was staged.

    Args:
        state: its size and modification time, in nanoseconds, where it was staged.
    Raises:
        DataError: it is not here, or another one.
    """
    found: tuple[int, int] | None = None
    with suppress(OSError):
        stat = path.stat()
        found = stat.st_size, stat.st_mtime_ns
    if found != state:
        what = "another file, by its size or time" if found else "no such file"
        raise DataError(
            f"{path}: {worker_name()} finds {what}: have the workers see the folder of the staged "
            "files under the same path (data.root)"
        )


def find_unreachable(url: str) -> str:
    """Why a worker does not reach a web server, if so; called on it."""
    import urllib.error
    import urllib.request

    try:
        urllib.request.urlopen(url, timeout=REACH_S).close()
    except urllib.error.HTTPError:
        return ""  # it answers, whatever it says
    except OSError as error:
        return f"{worker_name()} does not reach {url} ({error})"
    return ""


def ask(
    client: Client, deadline: float, question: Callable[..., Any], *arguments: Any
) -> dict[str, Any]:
    """Worker → what the call returns there, or raises; busy workers answer, too.

    Args:
        deadline: by the monotonic clock, some seconds from now at least.
    Raises:
        ClusterError: one does not answer in time.
    """
    asking = Background(
        lambda: client.run(question, *arguments, on_error="return"), "ask the workers"
    )
    within_s = max(LEAST_ANSWER_S, deadline - time.monotonic())
    if not asking.is_done(within_s):
        raise ClusterError(
            f"encode.engine: a worker of the Dask cluster at {client.scheduler.address} does not "
            f"answer within {within_s:.0f} s: see `dask worker`'s logs, and start it again"
        )
    answers: dict[str, Any] = asking.result()
    return answers


def _client(address: str) -> Client:
    from distributed import Client

    try:
        return Client(address, timeout=CONNECT_S, set_as_default=False)
    except (OSError, ValueError, TimeoutError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ClusterError(
            f"encode.address: no Dask cluster answers at {address} within {CONNECT_S:.0f} s "
            f"({reason}): {START}"
        ) from error


def _wait_for_a_worker(client: Client, address: str) -> None:
    try:
        client.wait_for_workers(1, timeout=FIRST_WORKER_S)
    except TimeoutError as error:
        raise ClusterError(
            f"encode.address: the Dask cluster at {address} has no worker, after "
            f"{FIRST_WORKER_S:.0f} s: start some with `dask worker {address}`"
        ) from error


def _cluster_of_this_machine(config: RunConfig) -> Any:
    """Worker processes of one thread each, as many as the config has threads and there are cores.

    They may use all of the memory: encoding takes little of it.
    """
    from distributed import LocalCluster

    features, wanted = config.features, config.training.num_workers
    num = max(1, min(wanted, num_cores())) if features.parallel_encode else 1
    return LocalCluster(
        n_workers=num,
        threads_per_worker=1,
        dashboard_address="127.0.0.1:0",
        memory_limit=None,
        silence_logs=logging.ERROR,
    )
