"""Parts of an entry, encoded by the workers of a Dask cluster."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from ups.config import ProblemConfig
from ups.data.sources import Staged
from ups.errors import ClusterError, Interrupted
from ups.latents.cluster import connected, say_encoding
from ups.latents.parts import Encoded, Part, encode_part

if TYPE_CHECKING:
    from distributed import Client, Future

WATCH_S = 0.25
ASK_S = 1.0
NO_WORKER_S = 60.0  # a machine may come back
KEPT = "what is encoded is kept, and the next build goes on from it"


class Dask:
    """Workers of a Dask cluster; see `ups.latents.parts.Workers`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def submit(self, config: ProblemConfig, encoder: Mapping[str, Any], part: Part) -> Future:
        """Have a worker encode a part; another one, where that one dies."""
        return self._client.submit(encode_part, config, encoder, part, pure=False)

    def result(self, future: Future) -> Encoded:
        """What came of a part that has ended; raises what the worker raised."""
        encoded: Encoded = future.result()
        return encoded

    def encode(
        self,
        config: ProblemConfig,
        encoder: Mapping[str, Any],
        parts: Sequence[Part],
        take: Callable[[Part, Encoded], None],
        stop: threading.Event,
    ) -> None:
        from distributed import KilledWorker

        ended: queue.SimpleQueue[Future] = queue.SimpleQueue()
        waiting: dict[Future, Part] = {}
        try:
            for part in parts:
                future = self.submit(config, encoder, part)
                waiting[future] = part
                future.add_done_callback(ended.put)
            left = _Presence(self._client)
            while waiting:
                if stop.is_set():
                    raise Interrupted("the cache build was stopped; a new one goes on from here")
                try:
                    future = ended.get(timeout=WATCH_S)
                except queue.Empty:
                    left.check()
                    continue
                part = waiting.pop(future)
                if future.cancelled():
                    raise _gone(self._client)
                take(part, self.result(future))
        except KilledWorker as error:
            raise ClusterError(
                f"{part.label}: every worker that encoded it died, and the last was "
                f"{error.last_worker.address}: look at its log and its memory (`dask worker "
                f"--memory-limit`); {KEPT}"
            ) from error
        finally:
            with suppress(Exception):  # the scheduler may be what is gone
                self._client.cancel(list(waiting), force=True)


@contextmanager
def over_dask(config: ProblemConfig, sources: Sequence[Staged]) -> Iterator[Dask]:
    """The workers of the config's cluster, as an `ups.latents.parts.Spread`."""
    with connected(config, sources) as client:
        say_encoding(client)
        yield Dask(client)


class _Presence:
    """Whether somebody is left to encode: else a build would wait for ever."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._asked_at = self._seen_at = time.monotonic()

    def check(self) -> None:
        """Ask the scheduler, once in a while.

        Raises:
            ClusterError: it is gone, or has had no worker for long.
        """
        now = time.monotonic()
        if self._client.status != "running":
            raise _gone(self._client)
        if now - self._asked_at < ASK_S:
            return
        self._asked_at = now
        if self._client.nthreads():
            self._seen_at = now
        elif now - self._seen_at > NO_WORKER_S:
            raise ClusterError(
                f"the Dask cluster has had no worker for {NO_WORKER_S:.0f} s: start some; {KEPT}"
            )


def _gone(client: Client) -> ClusterError:
    address = client.scheduler.address if client.scheduler is not None else "its address"
    return ClusterError(f"the Dask scheduler at {address} went away: start it again; {KEPT}")
