"""A TCP proxy that delays, and can hold back: the link where the kernel offers no other.

    python -m speed.link_proxy HOST UPSTREAM_PORT DELAY_MS RATE_BYTES_S [PORT]

Bytes leave it DELAY_MS after they came, in either direction, and the first ones of a connection a
round trip later, for the handshake. A connection has at most a window of bytes under way, as one
real connection would. All connections share the rate (0: none). It listens on PORT, or on a free
one, which it prints. TCP's slow start is not imitated.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys

WINDOW_BYTES = 4 << 20
CHUNK_BYTES = 256 << 10


class Rate:
    """A queue that all connections share: each chunk departs when those before it have."""

    def __init__(self, bytes_s: float) -> None:
        self._bytes_s, self._free_at = bytes_s, 0.0

    def departure(self, num_bytes: int, now: float) -> float:
        if not self._bytes_s:
            return now
        self._free_at = max(now, self._free_at) + num_bytes / self._bytes_s
        return self._free_at


async def relay(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    delay_s: float,
    extra_s: float,
    rate: Rate,
) -> None:
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[float, bytes] | None] = asyncio.Queue()
    under_way, room = 0, asyncio.Event()

    async def depart() -> None:
        nonlocal under_way
        while (item := await queue.get()) is not None:
            at, data = item
            if (wait_s := at - loop.time()) > 0:
                await asyncio.sleep(wait_s)
            writer.write(data)
            await writer.drain()
            under_way -= len(data)
            room.set()
        with contextlib.suppress(OSError):
            writer.write_eof()

    task = asyncio.create_task(depart())
    try:
        while data := await reader.read(CHUNK_BYTES):
            at = rate.departure(len(data), loop.time()) + delay_s + extra_s
            extra_s = 0.0
            queue.put_nowait((at, data))
            under_way += len(data)
            while under_way >= WINDOW_BYTES and not task.done():
                room.clear()
                await room.wait()
    finally:
        queue.put_nowait(None)
        with contextlib.suppress(OSError):
            await task


async def serve(host: str, upstream: int, delay_s: float, bytes_s: float, port: int) -> None:
    down = Rate(bytes_s)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection(host, upstream, limit=CHUNK_BYTES)
            await asyncio.gather(
                relay(reader, up_writer, delay_s, 2 * delay_s, Rate(0)),
                relay(up_reader, writer, delay_s, 0.0, down),
            )
            up_writer.close()
        except OSError:
            pass  # a client that hangs up
        finally:
            writer.close()

    server = await asyncio.start_server(handle, host, port, limit=CHUNK_BYTES, backlog=128)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    host, upstream, delay_ms, bytes_s, *port = sys.argv[1:]
    own_port = int(port[0]) if port else 0
    asyncio.run(serve(host, int(upstream), float(delay_ms) / 1e3, float(bytes_s), own_port))
