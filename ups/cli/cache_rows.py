"""Entries of the latent cache: found by their keys; as rows of a table, as JSON, and in words."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from ups.errors import CacheError
from ups.latents.entries import Damage, Entry, match_key
from ups.latents.prune import remove
from ups.latents.store import read_manifest
from ups.units import format_age, format_size, format_time


def of_key(found: Sequence[Entry], prefix: str) -> list[Entry]:
    """All generations of the one entry whose key begins so.

    Raises:
        CacheError: there is none, or more than one.
    """
    key = match_key(found, prefix)
    return [entry for entry in found if entry.config_hash == key]


def current(of_key: Sequence[Entry]) -> Entry:
    """The generation that a run would read.

    Raises:
        CacheError: there is none.
    """
    for entry in of_key:
        if entry.current:
            return entry
    raise CacheError(f"{of_key[0].config_hash} has no complete build: there is nothing to verify")


def remove_all(of_key: Sequence[Entry]) -> bool:
    """Whether all generations of an entry are gone; none is touched while one is in use."""
    if any(entry.in_use for entry in of_key):
        return False
    return all(remove(entry) or not entry.directory.exists() for entry in of_key)


def row(entry: Entry) -> dict[str, str]:
    now, built = time.time(), entry.generated_at
    return {
        "key": entry.config_hash,
        "state": entry.state + (", in use" if entry.in_use else ""),
        "config": entry.summary,
        "size": format_size(entry.num_bytes),
        "built": f"{format_age(now - built)} ago" if built is not None else "",
        "last use": f"{format_age(now - entry.last_used_at)} ago",
    }


def record(entry: Entry) -> dict[str, Any]:
    """An entry with what its key is made of and its files, as far as there is a manifest."""
    facts = entry.model_dump(mode="json")
    try:
        manifest = read_manifest(entry.directory)
    except CacheError:
        return {**facts, "key_fields": None, "files": []}
    files = [
        {
            "file": file.name,
            **file.model_dump(mode="json", include={"split", "shape", "dtype"}),
            "num_bytes": file.num_bytes,
            "num_chunks": file.num_chunks,
        }
        for file in manifest.files
    ]
    return {**facts, "key_fields": manifest.key_fields, "files": files}


def readable(record: dict[str, Any]) -> dict[str, str]:
    """A record's lines for people: moments in UTC, and one line for each key field."""
    lines = {}
    for name, value in {**record, **(record["key_fields"] or {})}.items():
        if name.endswith("_at") and value is not None:
            lines[name] = format_time(value)
        elif name == "num_bytes":
            lines["size"] = format_size(value)
        elif name != "key_fields":
            lines[name] = value if isinstance(value, str) else json.dumps(value)
    return lines


def verified(entry: Entry, damage: Sequence[Damage]) -> dict[str, Any]:
    facts = entry.model_dump(mode="json", include={"config_hash", "generation", "num_bytes"})
    return {**facts, "damage": [item.model_dump(mode="json") for item in damage]}


def count(found: Sequence[Entry]) -> str:
    """`2 entries, 3.2 GB`."""
    noun = "entry" if len(found) == 1 else "entries"
    return f"{len(found)} {noun}, {format_size(num_bytes(found))}"


def num_bytes(found: Sequence[Entry]) -> int:
    return sum(entry.num_bytes for entry in found)
