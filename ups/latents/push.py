"""Bring entries of this machine's cache into the shared one, where they are not yet."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

from ups.config import RunConfig
from ups.data.s3errors import answer
from ups.errors import CacheDamaged, Interrupted, ObjectUnavailable, UpsError
from ups.latents import store
from ups.latents.remote import Remote, reason_of
from ups.latents.store import MANIFEST_NAME, Manifest
from ups.trace import noted
from ups.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ups.data.objectstore import ObjectStore
    from ups.progress import Progress

log = logging.getLogger(__name__)


class Pushed(NamedTuple):
    """What became of an entry.

    Attributes:
        was_there: a whole one was there, of this machine's or another's making.
    """

    uri: str
    num_bytes: int
    was_there: bool


def push(
    remote: Remote,
    config: RunConfig,
    key: str,
    *,
    replacing: str = "",
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> Pushed:
    """Have the shared cache hold an entry: its files, then their manifest, then the pointer.

    Args:
        replacing: a generation there that turned out to be damaged.
        progress: takes bytes done and in all.
    Raises:
        CacheError: there is no such entry here.
        ObjectUnavailable, FetchError: the store refuses, or fails. Interrupted: `stop` was set.
    """
    manifest, hold = store.hold_current(config.training.latent_cache_dir, key)
    with closing(hold):
        there = _whole_generation(remote, key, replacing)
        if there:
            return Pushed(remote.folder.uri(f"{key}/{there}"), 0, was_there=True)
        return _send(remote, config, manifest, progress, stop, if_absent=there is None)


def _whole_generation(remote: Remote, key: str, damaged: str) -> str | None:
    """The generation there that readers can use; "" where the pointer names none, None without one.

    By its manifest: whoever finds its files damaged says so.
    """
    try:
        generation = remote.generation(key)
        if not generation:
            return None
        if generation != damaged:
            remote.manifest(key, generation)
            return generation
    except CacheDamaged as damage:
        log.info("%s: it is replaced", damage)
    except ObjectUnavailable as error:
        if answer(error.__cause__)[1] != 403:
            raise
        return None  # without the right to list, AWS says so of what is not there
    return ""


def _send(
    remote: Remote,
    config: RunConfig,
    manifest: Manifest,
    progress: Progress | None,
    stop: threading.Event | None,
    *,
    if_absent: bool,
) -> Pushed:
    directory = store.generation_dir(config.training.latent_cache_dir, manifest)
    folder, below = remote.folder, f"{manifest.config_hash}/{manifest.generation}"
    total = sum(file.data_offset + file.num_bytes for file in manifest.files)
    sent = 0

    def told(done: int, _total: int) -> None:
        if progress is not None:
            progress(sent + done, total)

    for file in manifest.files:
        if stop is not None and stop.is_set():
            raise Interrupted("the push was stopped; the next one goes on from there")
        folder.send(directory / file.name, f"{below}/{file.name}", told, stop)
        sent += file.data_offset + file.num_bytes
    folder.put(f"{below}/{MANIFEST_NAME}", (directory / MANIFEST_NAME).read_bytes())
    if not remote.point_to(manifest, if_absent=if_absent):
        return Pushed(folder.uri(below), total, was_there=True)  # another was faster
    return Pushed(folder.uri(below), total, was_there=False)


def push_all(
    config: RunConfig,
    keys: Iterable[str],
    store_of_run: ObjectStore | None,
    stop: threading.Event,
    damaged: Mapping[str, str] | None = None,
) -> str:
    """Push entries that a run has built or found here; a fault is a line in the log, and no error.

    Args:
        damaged: key → a generation there that the run could not use.
    Returns: what became of each, in one line.
    """
    damaged, lines = damaged or {}, []
    for key in keys:
        began = time.monotonic()
        try:
            with noted("push", key=key), closing(Remote.opened(config, store_of_run)) as remote:
                done = push(remote, config, key, replacing=damaged.get(key, ""), stop=stop)
            size, seconds = format_size(done.num_bytes), time.monotonic() - began
            how = "is there already" if done.was_there else f"pushed, {size} in {seconds:.2f} s"
            log.info("%s", line := f"{done.uri}: {how}")
        except (UpsError, OSError) as error:
            log.warning("%s", line := f"latents {key} are not pushed: {reason_of(error)}")
        lines.append(line)
    return "; ".join(lines)
