"""Whether a run streams its data: then they begin to arrive, else the log says why."""

from __future__ import annotations

import logging
import threading

from ups.config import RunConfig
from ups.data.objectstore import ObjectStore
from ups.errors import CannotStream, ConfigError, Interrupted, ObjectUnavailable
from ups.latents.scouted import NothingToFetch, Scouted
from ups.machine.ranks import why_ranks_wait
from ups.progress import Show

log = logging.getLogger(__name__)

STREAMING = "training on what is there, while the rest is fetched and encoded"


def scout(
    config: RunConfig, store: ObjectStore | None, stop: threading.Event, show: Show
) -> Scouted | None:
    """Look what there is to stream, and have it begin to arrive; None where all comes first.

    The log says why, unless there is nothing to wait for.

    Args:
        stop: ends the fetch; what has arrived is kept.
        show: makes the callbacks that take how far each object is.
    Raises:
        ConfigError: `features.stream` is on, and it cannot be.
        DataError, FetchError, DiskFull: the run would fail with it in any case.
        Interrupted: `stop` was set.
    """
    if store is None:
        return None
    if not may_stream(config):
        if not config.data.keep_sources:
            log.info("the files are kept, as nothing streams: data.keep_sources is without effect")
        return None
    try:
        scouted = Scouted.of_store(config, store, stop)
        try:
            scouted.begin(show)
        except BaseException:  # a stop, too: nobody else has what was begun
            scouted.close()
            raise
    except NothingToFetch:
        return None
    except CannotStream as reason:
        cannot_stream(config, reason)
        return None
    except ObjectUnavailable as error:  # the download of that object says it, with its split
        log.debug("no streaming start: %s", error)
        return None
    if stop.is_set():  # nobody is there any more who would close it
        scouted.close()
        raise Interrupted("stopped before anything was fetched")
    size = sum(coming.num_bytes for coming in scouted.objects) / 1e6
    log.info("%s: %.0f MB of %d objects", STREAMING, size, len(scouted.objects))
    return scouted


def may_stream(config: RunConfig) -> bool:
    """Whether the features allow it.

    A build by a cluster says it itself: what is in the cache already needs none.

    Raises:
        ConfigError: one asks for it, and another forbids it.
    """
    features = config.features
    if config.encodes_on_cluster:
        return False
    if features.may_stream and (reason := why_ranks_wait(config)):
        cannot_stream(config, CannotStream(reason))
        return False
    if not features.may_stream and features.stream != "off" and not features.is_legacy:
        cannot_stream(config, CannotStream(f"features.preload is {features.preload}"))
    return features.may_stream


def cannot_stream(config: RunConfig, reason: CannotStream) -> None:
    """Say why all has to be there first.

    Raises:
        ConfigError: the config wants it otherwise.
    """
    if config.features.stream == "on":
        raise ConfigError(
            f"features.stream: found on, but {reason}; expected objects in contiguous float32, "
            "in a store that knows ranges, and room for the latents in memory: set it to auto"
        ) from reason
    kept = "" if config.data.keep_sources else "; so the files are kept, against data.keep_sources"
    log.info("no streaming start: %s%s", reason, kept)
