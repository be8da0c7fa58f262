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

from speed.measure import run_checked
from speed.worker import PROJECT_DIR, describe

GBIT = 1e9
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Link:
    """A way from the clients to the server.

    Attributes:
        url: where the clients find the server.
        prefix: put before a client's command.
        rate_bit_s: None where nothing limits it.
        how: how the link was made.
    """

    name: str
    url: str
    prefix: tuple[str, ...]
    rate_bit_s: float | None
    how: str


def loopback(port: int) -> Link:
    return Link("loopback", f"http://{LOOPBACK}:{port}", (), None, "loopback, nothing shaped")


@contextlib.contextmanager
def shaped(pair: Pair | None, port: int, rate_bit_s: float, rtt_ms: float) -> Iterator[Link]:
    """A link of this rate, and with this round-trip time, to a server.

    Args:
        pair: from `namespace`; the server listens on its address, without one on loopback.
    """
    name = f"{rate_bit_s / GBIT:g} Gbit/s" + (f", {rtt_ms:g} ms round trip" if rtt_ms else "")
    prefix: tuple[str, ...] = ()
    host, is_delayed = LOOPBACK, False
    how, proxy_rate = "rate by a proxy of our own (no tc here)", rate_bit_s / 8
    if pair is not None:
        host, prefix = pair.server_address, tuple(pair.inside.split())
        _unshape(pair)
        run_checked(_tbf(pair, rate_bit_s).split())
        is_delayed = rtt_ms > 0 and _add_netem(pair, rtt_ms)
        how, proxy_rate = "rate by tc tbf on a veth pair, clients in a network namespace", 0.0
    if rtt_ms:
        way = "tc netem" if is_delayed else "a delaying proxy of our own (no netem here)"
        how += f"; round trip by {way}"
    if pair is not None and (is_delayed or not rtt_ms):
        yield Link(name, f"http://{host}:{port}", prefix, rate_bit_s, how)
        return
    with _proxy(host, port, rtt_ms / 2, proxy_rate) as proxy_port:
        yield Link(name, f"http://{host}:{proxy_port}", prefix, rate_bit_s, how)


@dataclass(frozen=True, slots=True)
class Pair:
    """A network namespace of ours, with one device that leads to this one."""

    name: str
    server_device: str
    client_device: str
    server_address: str

    @property
    def inside(self) -> str:
        """What runs a command in the namespace."""
        return f"ip netns exec {self.name}"


@contextlib.contextmanager
def namespace() -> Iterator[tuple[Pair | None, str]]:
    """Where clients run behind a link that `tc` shapes; else None, and why the system refuses."""
    pid = os.getpid()
    net = f"10.{200 + pid % 50}.{pid // 50 % 250}"
    pair = Pair(f"bench-{pid}", f"bs{pid}", f"bc{pid}", f"{net}.1")
    server, client = f"dev {pair.server_device}", f"dev {pair.client_device}"
    commands = f"""
        ip netns add {pair.name}
        ip link add {pair.server_device} type veth peer name {pair.client_device} netns {pair.name}
        ip address add {net}.1/24 {server}
        ip link set {server} up
        {pair.inside} ip address add {net}.2/24 {client}
        {pair.inside} ip link set {client} up
        {pair.inside} ip link set dev lo up
        {_tbf(pair, GBIT)}"""
    refused = ""
    try:
        try:
            for command in commands.strip().splitlines():
                run_checked(command.split())
        except (RuntimeError, OSError) as error:
            refused = describe(error)
        yield None if refused else pair, refused
    finally:
        for what, name in (("link", pair.server_device), ("netns", pair.name)):
            with contextlib.suppress(OSError):
                subprocess.run(["ip", what, "del", name], capture_output=True)


def _unshape(pair: Pair) -> None:
    delete = "tc qdisc del dev"
    for command in (
        f"{delete} {pair.server_device} root",
        f"{pair.inside} {delete} {pair.client_device} root",
    ):
        subprocess.run(command.split(), capture_output=True)


def _tbf(pair: Pair, rate_bit_s: float) -> str:
    shape = f"tbf rate {rate_bit_s:.0f}bit burst 256kb latency 50ms"
    return f"tc qdisc add dev {pair.server_device} root handle 1: {shape}"


def _add_netem(pair: Pair, rtt_ms: float) -> bool:
    """Half of the delay on each side; False where the kernel has no netem."""
    delay = f"netem delay {rtt_ms / 2:g}ms limit 100000"
    client = f"{pair.inside} tc qdisc add dev {pair.client_device} root {delay}"
    behind = f"tc qdisc add dev {pair.server_device} parent 1:1 {delay}"
    try:
        for command in (client, behind):
            run_checked(command.split())
    except RuntimeError:
        return False
    return True


@contextlib.contextmanager
def _proxy(host: str, upstream: int, delay_ms: float, bytes_s: float) -> Iterator[int]:
    """The port of a proxy to the server."""
    command = [sys.executable, "-m", "speed.link_proxy", host, str(upstream)]
    command += [str(delay_ms), str(bytes_s)]
    with subprocess.Popen(command, cwd=PROJECT_DIR, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise RuntimeError("the proxy did not start")
            yield int(line)
        finally:
            process.terminate()
