"""Entries of the latent cache as rows of a table, as JSON, and in words."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ups.errors import CacheError
from ups.units import format_age, format_size

if TYPE_CHECKING:
    from ups.latents.entries import Damage, Entry
    from ups.latents.prune import Removal


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


def removal_row(removal: Removal) -> dict[str, str]:
    of_entry = row(removal.entry)
    return {
        "key": of_entry["key"],
        "size": of_entry["size"],
        "why": removal.reason,
        "config": of_entry["config"],
    }


def record(entry: Entry) -> dict[str, Any]:
    """An entry with what its key is made of and its files, as far as there is a manifest."""
    from ups.latents.store import read_manifest

    facts = entry.model_dump(mode="json")
    try:
        manifest = read_manifest(entry.directory)
    except CacheError:
        return {**facts, "key_fields": None, "files": []}
    files = [
        {
            "file": file.name,
            "split": file.split,
            "shape": list(file.shape),
            "dtype": file.dtype,
            "num_bytes": file.num_bytes,
            "num_chunks": file.num_chunks,
        }
        for file in manifest.files
    ]
    return {**facts, "key_fields": manifest.key_fields, "files": files}


def readable(record: dict[str, Any]) -> dict[str, str]:
    """A record's lines for people: moments in local time, and one line for each key field."""
    lines = {}
    for name, value in {**record, **(record["key_fields"] or {})}.items():
        if name.endswith("_at") and value is not None:
            lines[name] = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))
        elif name == "num_bytes":
            lines["size"] = format_size(value)
        elif name != "key_fields":
            lines[name] = value if isinstance(value, str) else json.dumps(value)
    return lines


def verified(entry: Entry, damage: Sequence[Damage]) -> dict[str, Any]:
    return {
        "config_hash": entry.config_hash,
        "generation": entry.generation,
        "num_bytes": entry.num_bytes,
        "damage": [item.model_dump(mode="json") for item in damage],
    }


def count(found: Sequence[Entry]) -> str:
    noun = "entry" if len(found) == 1 else "entries"
    return f"{len(found)} {noun}, {format_size(num_bytes(found))}"


def num_bytes(found: Sequence[Entry]) -> int:
    return sum(entry.num_bytes for entry in found)
