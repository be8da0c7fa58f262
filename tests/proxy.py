"""A proxy in front of the S3 server, which does what bad lines and busy stores do."""

from __future__ import annotations

import http.client
import http.server
import io
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
        refuse: status, code and message that answer each request, of a HEAD the status alone.
        refused: so many were.
        page: a web page with status 200 answers each request.
        head_status: answers each HEAD.
        edit: changes the headers of an answer; takes the request's method and them.
        read_only: AccessDenied answers what would change something.
        retry_after: goes with SlowDown.
        on_range: called with the path before a range is asked for upstream; where it returns
            True, SlowDown is answered.
    """

    answer_503: int = 0
    reset: int = 0
    truncate: int = 0
    corrupt: int = 0
    cut_after: int = 100_000
    delay_s: float = 0
    stall: threading.Event | None = None
    whole: bytes | None = None
    refuse: tuple[int, str, str] | None = None
    refused: int = 0
    page: bool = False
    head_status: int | None = None
    edit: Callable[[str, dict[str, str]], object] = lambda method, headers: None
    read_only: bool = False
    retry_after: str | None = None
    on_range: Callable[[str], object] = lambda path: None
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
    asked: list[str] = field(default_factory=list)  # `GET /bucket/key`, as they came


def error(code: str, message: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()


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
        self._note()
        if self._refused(faults):
            return None
        if ranged is None:
            return self._forward(Faults(edit=faults.edit))
        with faults.lock:
            self.proxy.ranges.append(ranged)
        if faults.on_range(self.path) is True or faults.take("answer_503"):
            later = {"Retry-After": faults.retry_after} if faults.retry_after else {}
            return self._answer(503, error("SlowDown", "busy"), **later)
        if faults.whole is not None:
            self._head(200, {"Content-Length": str(len(faults.whole)), "Etag": '"whole"'}, faults)
            return self._relay(io.BytesIO(faults.whole), faults)
        return self._forward(faults)

    def do_HEAD(self):
        faults = self.proxy.faults
        self._note()
        if self._refused(faults):
            return
        if faults.head_status is not None:
            self._answer(faults.head_status, b"")
        else:
            self._forward(Faults(edit=faults.edit))

    def do_PUT(self):
        """Also of the other requests that change something."""
        self._note()
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.proxy.faults.read_only:
            return self._answer(403, error("AccessDenied", "may not write"))
        return self._forward(Faults(), body)

    do_POST = do_DELETE = do_PUT

    def _note(self):
        with self.proxy.faults.lock:
            self.proxy.asked.append(f"{self.command} {self.path}")

    def log_message(self, *args):
        pass

    def _refused(self, faults: Faults) -> bool:
        if faults.page:
            self._answer(
                200, b"<!doctype html><title>Console</title>", **{"Content-Type": "text/html"}
            )
        elif faults.refuse is not None:
            status, code, message = faults.refuse
            with faults.lock:
                faults.refused += 1
            self._answer(status, error(code, message))
        return faults.page or faults.refuse is not None

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self._head(status, {"Content-Length": str(len(body)), **headers}, self.proxy.faults)
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: int, headers: dict[str, str], faults: Faults) -> None:
        faults.edit(self.command, headers)
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _forward(self, faults: Faults, given: bytes | None = None) -> None:
        connection = http.client.HTTPConnection(*self.upstream, timeout=20)
        try:
            connection.request(self.command, self.path, given, headers=dict(self.headers))
            response = connection.getresponse()
            headers, body = dict(response.getheaders()), response
            if headers.pop("Transfer-Encoding", None):  # of a listing
                whole = response.read()
                headers["Content-Length"], body = str(len(whole)), io.BytesIO(whole)
            self._head(response.status, headers, faults)
            if self.command != "HEAD":
                self._relay(body, faults)
        finally:
            connection.close()

    def _relay(self, response: http.client.HTTPResponse | io.BytesIO, faults: Faults) -> None:
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


@contextmanager
def serving_proxy(endpoint_url: str) -> Iterator[type[_Handler]]:
    """A proxy before this server; its `proxy` says where it is and what goes wrong."""
    host, port = endpoint_url.removeprefix("http://").split(":")
    handler = type("Handler", (_Handler,), {"upstream": (host, int(port))})
    server = _Server(("127.0.0.1", 0), handler)
    handler.proxy = Proxy(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def proxy_handler(s3) -> Iterator[type[_Handler]]:
    with serving_proxy(s3.endpoint_url) as handler:
        yield handler


@pytest.fixture
def proxy(proxy_handler) -> Proxy:
    """In front of `s3`, without faults until a test sets `proxy.faults`."""
    proxy_handler.proxy = Proxy(proxy_handler.proxy.url)
    return proxy_handler.proxy
