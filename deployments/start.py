"""Start a flow run: `warm` from the process kept ready, or `cold` in a fresh interpreter.

    python -I -S deployments/start.py [MODULE]        what a worker runs for each flow run

UPS_START_MODE is `warm` (default) or `cold`. A warm start hands this process's environment,
working directory and standard streams to the kept process, which forks the run; this process then
stands in for it: signals go on to it, its exit code comes back. Without a kept process the start
is cold, and a line says so. Only the standard library is imported here: each start pays for it.
"""

import array
import contextlib
import json
import os
import select
import signal
import socket
import struct
import sys

LENGTH = struct.Struct("!I")
STATUS = struct.Struct("!i")
PARAMETERS = "UPS_PARAMETERS"  # in the environment of a run: what it was asked for, as JSON
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def main() -> None:
    """Become the run that the environment asks for, or stand in for it; does not return."""
    module = sys.argv[1] if len(sys.argv) > 1 else "prefect.engine"
    path = os.environ.get("UPS_WARM_SOCKET")
    if os.environ.get("UPS_START_MODE", "warm") == "warm" and path:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(path)
        except OSError as error:
            print(f"no process is kept ready at {path} ({error}): cold start", flush=True)
        else:
            sys.exit(run_warm(connection, module))
    os.environ["UPS_STARTED"] = "cold"
    os.execv(sys.executable, [sys.executable, "-m", "deployments.cold", module])


def run_warm(connection: socket.socket, module: str) -> int:
    """Have the run forked, and wait for it; returns its exit code.

    Signals are written to a pipe that is waited on with the connection. So none is lost: not one
    that comes before the run's pid is known, nor one that comes just before a wait begins.
    """
    given = {"module": module, "env": dict(os.environ), "cwd": os.getcwd()}
    request = json.dumps(given).encode()
    streams = array.array("i", [0, 1, 2])
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)]
    signals, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    for number in FORWARDED:
        signal.signal(number, lambda *_: None)
    connection.sendmsg([LENGTH.pack(len(request))], rights)
    connection.sendall(request)
    try:
        (pid,) = STATUS.unpack(receive(connection, STATUS.size))
        while connection not in select.select([connection, signals], [], [])[0]:
            for number in os.read(signals, 64):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        (code,) = STATUS.unpack(receive(connection, STATUS.size))
    except ConnectionError as error:
        print(f"the process kept ready lost sight of the run ({error})", file=sys.stderr)
        return 1
    if code < 0:  # end as the run did, by the same signal
        with contextlib.suppress(OSError):  # SIGKILL, which nobody handles, refuses this
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def receive(connection: socket.socket, count: int) -> bytes:
    """Read exactly `count` bytes.

    Raises:
        ConnectionError: the other end was closed before.
    """
    data = b""
    while len(data) < count:
        received = connection.recv(count - len(data))
        if not received:
            raise ConnectionError("the connection was closed")
        data += received
    return data


if __name__ == "__main__":
    main()
