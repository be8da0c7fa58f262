"""Links between clients and the object store: loopback, 1 Gbit/s, and 30 ms of round-trip time.

Where the kernel lets us, the clients run in a network namespace behind a pair of virtual Ethernet
devices, and `tc` shapes the server's side (tbf) and delays both (netem). What it does not offer
is made by a proxy of our own (`link_proxy`); each link says how it was made.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.settings import run_checked
from benchmarks.worker import PROJECT_DIR

GBIT = 1e9
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Link:
    """
    Attributes:
        host, port: where the clients find the server.
        prefix: put before a client's command.
        rate_bit_s: None where nothing limits it.
        how: how the link was made.
    """

    name: str
    host: str
    port: int
    prefix: tuple[str, ...]
    rate_bit_s: float | None
    how: str

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"


def loopback(port: int) -> Link:
    return Link("loopback", LOOPBACK, port, (), None, "loopback, nothing shaped")


@contextlib.contextmanager
def shaped(place: Pair | None, port: int, rate_bit_s: float, rtt_ms: float) -> Iterator[Link]:
    """A link of this rate, and with this round-trip time, to a server.

    Args:
        place: from `namespace`; the server listens on its address, without one on loopback.
    """
    name = f"{rate_bit_s / GBIT:g} Gbit/s" + (f", {rtt_ms:g} ms round trip" if rtt_ms else "")
    host, prefix, delayed = LOOPBACK, (), False
    how = "rate by a proxy of our own (no tc here)"
    if place is not None:
        host, prefix = place.server_address, ("ip", "netns", "exec", place.name)
        _unshape(place)
        run_checked(_tbf(place, rate_bit_s))
        delayed = rtt_ms > 0 and _add_netem(place, rtt_ms)
        how = "rate by tc tbf on a veth pair, clients in a network namespace"
    if rtt_ms:
        way = "tc netem" if delayed else "a delaying proxy of our own (no netem here)"
        how += f"; round trip by {way}"
    if place is not None and (delayed or not rtt_ms):
        yield Link(name, host, port, prefix, rate_bit_s, how)
        return
    proxy_rate = 0.0 if place else rate_bit_s / 8
    with _proxy(host, port, rtt_ms / 2, proxy_rate) as proxy_port:
        yield Link(name, host, proxy_port, prefix, rate_bit_s, how)


@dataclass(frozen=True, slots=True)
class Pair:
    """A network namespace of ours, with one device that leads to this one."""

    name: str
    server_device: str
    client_device: str
    server_address: str


@contextlib.contextmanager
def namespace() -> Iterator[Pair | None]:
    """Where clients run behind a link that `tc` shapes; None where the system forbids it."""
    pid = os.getpid()
    net = f"10.{200 + pid % 50}.{pid // 50 % 250}"
    pair = Pair(f"bench-{pid}", f"bs{pid}", f"bc{pid}", f"{net}.1")
    inside = ["ip", "netns", "exec", pair.name]
    veth = ["ip", "link", "add", pair.server_device, "type", "veth", "peer", "name"]
    found: Pair | None = pair
    try:
        try:
            run_checked(["ip", "netns", "add", pair.name])
            run_checked([*veth, pair.client_device, "netns", pair.name])
            run_checked(["ip", "address", "add", f"{net}.1/24", "dev", pair.server_device])
            run_checked(["ip", "link", "set", pair.server_device, "up"])
            run_checked([*inside, "ip", "address", "add", f"{net}.2/24", "dev", pair.client_device])
            run_checked([*inside, "ip", "link", "set", pair.client_device, "up"])
            run_checked([*inside, "ip", "link", "set", "lo", "up"])
            run_checked(_tbf(pair, GBIT))
        except (RuntimeError, OSError):
            found = None
        yield found
    finally:
        for command in (["link", "del", pair.server_device], ["netns", "del", pair.name]):
            with contextlib.suppress(OSError):
                subprocess.run(["ip", *command], capture_output=True)


def _unshape(pair: Pair) -> None:
    command = ["tc", "qdisc", "del", "dev", pair.server_device, "root"]
    subprocess.run(command, capture_output=True)
    inside = ["ip", "netns", "exec", pair.name, "tc", "qdisc", "del", "dev", pair.client_device]
    subprocess.run([*inside, "root"], capture_output=True)


def _tbf(pair: Pair, rate_bit_s: float) -> list[str]:
    shape = ["tbf", "rate", f"{rate_bit_s:.0f}bit", "burst", "256kb", "latency", "50ms"]
    return ["tc", "qdisc", "add", "dev", pair.server_device, "root", "handle", "1:", *shape]


def _add_netem(pair: Pair, rtt_ms: float) -> bool:
    """Half of the delay on each side; False where the kernel has no netem."""
    delay = ["netem", "delay", f"{rtt_ms / 2:g}ms", "limit", "100000"]
    behind = ["tc", "qdisc", "add", "dev", pair.server_device, "parent", "1:1", *delay]
    client = ["tc", "qdisc", "add", "dev", pair.client_device, "root", *delay]
    try:
        run_checked(["ip", "netns", "exec", pair.name, *client])
        run_checked(behind)
    except RuntimeError:
        return False
    return True


@contextlib.contextmanager
def _proxy(host: str, upstream: int, delay_ms: float, bytes_s: float) -> Iterator[int]:
    command = [sys.executable, "-m", "benchmarks.link_proxy", host, str(upstream)]
    command += [str(delay_ms), str(bytes_s)]
    process = subprocess.Popen(command, cwd=PROJECT_DIR, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError("the proxy did not start")
        yield int(line)
    finally:
        process.terminate()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
