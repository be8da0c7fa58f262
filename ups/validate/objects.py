"""Ask the object store about objects, and be done in a few seconds whatever it does."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ups.background import Background
from ups.config import RunConfig
from ups.errors import FetchError, UpsError
from ups.validate.sources import Known

if TYPE_CHECKING:
    from ups.data.objectstore import ObjectInfo, ObjectStore

NUM_THREADS = 8

Place = tuple[str, str]  # bucket, key


@dataclass(slots=True)
class Answers:
    """What the store says.

    Attributes:
        endpoint: its address; empty where not even that is known.
        found: the objects that are there.
        missing: why others are not: no such key or bucket.
        refused: why others cannot be looked at.
        unreachable: why the store as a whole gave no answer; a run takes what is staged then.
        denied: why it answers no question at all, such as missing credentials.
    """

    endpoint: str = ""
    found: dict[Place, ObjectInfo] = field(default_factory=dict)
    missing: dict[Place, str] = field(default_factory=dict)
    refused: dict[Place, str] = field(default_factory=dict)
    unreachable: str | None = None
    denied: str | None = None


def look(config: RunConfig, known: Sequence[Known], timeout_s: float) -> Answers:
    """One question for each object, some at a time, without a second try."""
    answers = Answers()
    places = list(dict.fromkeys(place for k in known if (place := place_of(k)) is not None))
    if not places:
        return answers
    try:
        store = _open(config)
    except UpsError as error:
        answers.denied = str(error)
        return answers
    answers.endpoint = store.endpoint
    deadline = time.monotonic() + timeout_s
    # Daemon threads: one that still waits for an answer does not keep the process.
    asked = [
        Background(functools.partial(_ask, store, part, answers), "ask the object store")
        for i in range(NUM_THREADS)
        if (part := places[i::NUM_THREADS])
    ]
    for one in asked:
        if not one.is_done(max(0.0, deadline - time.monotonic())):
            # Not the same object: the thread may still write into that.
            late = f"{store.endpoint} gave no answer in {timeout_s:g} s"
            return Answers(store.endpoint, unreachable=late)
        one.result()
    store.close()
    return answers


def place_of(known: Known) -> Place | None:
    """Where its object is; None for a local file."""
    source = known.wanted
    return None if source.bucket is None or source.key is None else (source.bucket, source.key)


def _open(config: RunConfig) -> ObjectStore:
    from ups.data.objectstore import ObjectStore
    from ups.data.s3errors import Retry

    return ObjectStore(config.data.endpoint_url, retry=Retry(attempts=1))


def _ask(store: ObjectStore, places: Sequence[Place], answers: Answers) -> None:
    from ups.data.s3errors import answer, describe, transport_errors

    for place in places:
        if answers.unreachable or answers.denied:
            return
        try:
            answers.found[place] = store.head(*place)
        except UpsError as error:
            status = answer(error.__cause__)[1]
            if status == 404:
                answers.missing[place] = str(error)
            elif isinstance(error.__cause__, transport_errors()) and not status:
                # What one question says holds for all: the object's address is left out.
                if isinstance(error, FetchError):
                    reason = describe(error.__cause__)
                    answers.unreachable = f"{store.endpoint} cannot be reached: {reason}"
                else:
                    answers.denied = str(error).partition(": ")[2]
            else:
                answers.refused[place] = str(error)
