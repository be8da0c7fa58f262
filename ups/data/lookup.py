"""Ask about many objects at once: a listing of their folder stands for a HEAD of each.

A listing says less: not whether an archived object was restored, nor how it is encrypted, without
which nobody knows whether an ETag is an MD5. So it answers for objects whose SHA-256 stands in a
manifest; whoever asks makes a HEAD of the others.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Iterable

from ups.background import WATCH_S, Background
from ups.data.objectstore import ObjectInfo, ObjectStore

LEAST = 16  # objects of one folder; as many HEADs are under way at a time
PATIENCE_S = 2.0  # some stores hash all objects of a folder before they list it

Place = tuple[str, str]  # bucket and key


def look_up(
    store: ObjectStore, places: Iterable[Place], stop: threading.Event | None
) -> dict[Place, ObjectInfo]:
    """What listings say of these objects; those of which they do not say all are left out."""
    folders: dict[Place, set[str]] = {}
    for bucket, key in places:
        folders.setdefault((bucket, key[: key.rfind("/") + 1]), set()).add(key)
    asked = [
        Background(functools.partial(store.listed, bucket, keys), "list objects")
        for (bucket, _), keys in folders.items()
        if len(keys) >= LEAST
    ]
    until, found = time.monotonic() + PATIENCE_S, dict[Place, ObjectInfo]()
    for listing in asked:
        while not listing.is_done(WATCH_S):
            if time.monotonic() > until or (stop is not None and stop.is_set()):
                return found
        found |= {(info.bucket, info.key): info for info in listing.result()}
    return found
