"""A proxy in front of the S3 server that does what bad lines and busy stores do."""

from __future__ import annotations

import http.client
import http.server
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest


@dataclass
class Faults:
    """What goes wrong from now on; counts are of requests for a range, and run down to 0.

    Attributes:
        answer_503: range requests answered with SlowDown.
        reset: bodies cut by a connection reset, after `cut_after` bytes.
        truncate: bodies that end early but politely, after `cut_after` bytes.
        corrupt: bodies whose first byte is flipped.
        delay_s: wait before every 64 KiB of a body.
        stall: an event that must be set before a body goes on past `cut_after` bytes.
        whole: sent with status 200, whatever range was asked for.
        on_range: called before a range is asked for upstream.
    """

    answer_503: int = 0
    reset: int = 0
    truncate: int = 0
    corrupt: int = 0
    cut_after: int = 100_000
    delay_s: float = 0
    stall: threading.Event | None = None
    whole: bytes | None = None
    on_range: Callable[[], None] | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, name: str) -> bool:
        with self.lock:
            left = getattr(self, name)
            setattr(self, name, max(0, left - 1))
            return left > 0


@dataclass
class Proxy:
    url: str
    faults: Faults = field(default_factory=Faults)
    ranges: list[str] = field(default_factory=list)  # Range headers, as they came


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request, client_address):
        pass  # clients that are killed or halted hang up


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    upstream: tuple[str, int]
    proxy: Proxy

    def do_GET(self):
        faults, ranged = self.proxy.faults, self.headers["Range"]
        if ranged is None:
            return self._forward(Faults())
        with faults.lock:
            self.proxy.ranges.append(ranged)
        if faults.on_range is not None:
            faults.on_range()
        if faults.take("answer_503"):
            body = b"<Error><Code>SlowDown</Code><Message>busy</Message></Error>"
            return self._answer(503, body)
        if faults.whole is not None:
            return self._answer(200, faults.whole, ETag='"whole"')
        return self._forward(faults)

    def do_HEAD(self):
        self._forward(Faults())

    def log_message(self, *args):
        pass

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _forward(self, faults: Faults) -> None:
        connection = http.client.HTTPConnection(*self.upstream, timeout=20)
        try:
            connection.request(self.command, self.path, headers=dict(self.headers))
            response = connection.getresponse()
            self.send_response_only(response.status)
            for name, value in response.getheaders():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self._relay(response, faults)
        finally:
            connection.close()

    def _relay(self, response: http.client.HTTPResponse, faults: Faults) -> None:
        reset, truncate = faults.take("reset"), faults.take("truncate")
        corrupt, sent = faults.take("corrupt"), 0
        while chunk := response.read(64 << 10):
            if corrupt and not sent:
                chunk = bytes([chunk[0] ^ 1]) + chunk[1:]
            if (reset or truncate) and sent + len(chunk) > faults.cut_after:
                self.wfile.write(chunk[: faults.cut_after - sent])
                if reset:
                    now = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: close sends a RST
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
                self.close_connection = True
                return
            if faults.stall is not None and sent + len(chunk) > faults.cut_after:
                faults.stall.wait(20)
            time.sleep(faults.delay_s)
            self.wfile.write(chunk)
            sent += len(chunk)


@pytest.fixture(scope="module")
def proxy_handler(s3) -> Iterator[type[_Handler]]:
    host, port = s3.endpoint_url.removeprefix("http://").split(":")
    handler = type("Handler", (_Handler,), {"upstream": (host, int(port))})
    server = _Server(("127.0.0.1", 0), handler)
    handler.proxy = Proxy(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def proxy(proxy_handler) -> Proxy:
    """In front of `s3`, without faults until a test sets `proxy.faults`."""
    proxy_handler.proxy = Proxy(proxy_handler.proxy.url)
    return proxy_handler.proxy
