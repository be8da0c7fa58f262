"""Which cache entry is the config's, as far as that is known before anything is fetched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ups.config import Parsed
from ups.config_data import Task
from ups.latents import store
from ups.latents.key import ENCODED_SPLITS, hash_fields, key_fields
from ups.validate.check import replaced_among
from ups.validate.sources import Sources, of_task

KEY_SECTIONS = (
    "data.task",
    "data.sources",
    "data.grid_points",
    "latent",
    "encoder",
    "training.latent_cache_dtype",
)
UNKNOWN = "not known"


Found = Mapping[str, bool | None]
"""Task → whether its latents are in the cache; None where that is not known, or none are needed."""


def to_build(found: Found) -> list[str]:
    """The tasks whose latents a run is going to encode, as far as that is known."""
    return [name for name, is_there in found.items() if is_there is False]


def finds_entries(parsed: Parsed, sources: Sources) -> dict[str, bool | None]:
    """Which latents a run finds in the cache, by a look at the pointers alone."""
    return {task.name: _finds_entry(parsed, sources, task) for task in parsed.config.data.tasks}


def _finds_entry(parsed: Parsed, sources: Sources, task: Task) -> bool | None:
    config = parsed.config
    if config.features.preload == "off":
        return None
    directory = config.training.latent_cache_dir
    if not config.features.reuse_cache or not any(directory.glob(f"*/{store.POINTER_NAME}")):
        return False
    fields, why_not = cache_key_fields(parsed, sources, task)
    if fields is None or why_not:
        return None
    return bool(store.current_generation(store.entry_dir(directory, hash_fields(fields))))


def cache_key_fields(
    parsed: Parsed, sources: Sources, task: Task
) -> tuple[dict[str, Any] | None, str]:
    """The fields of the cache key of a task, and why the key is not known, if it is not."""
    if faulty := replaced_among(parsed, KEY_SECTIONS):
        return None, f"the key depends on {', '.join(faulty)}, which is faulty"
    own = of_task(sources, task.name)
    encoded = {split: own.get(split, []) for split in ENCODED_SPLITS}
    if missing := [split for split in encoded if not encoded[split]]:
        return None, f"the key depends on the data of {', '.join(missing)}, which are not known"
    identities: dict[str, list[_Identity]] = {
        split: [_Identity(k.sha256, k.rows) for k in encoded[split]] for split in encoded
    }
    unknown = [k.wanted.uri for known in encoded.values() for k in known if k.sha256 is None]
    why_not = f"the key depends on the SHA-256 of {', '.join(dict.fromkeys(unknown))}"
    return key_fields(parsed.config.of_task(task), identities), why_not if unknown else ""


class _Identity:
    """A source's content and rows, where the content may not be known yet."""

    def __init__(self, sha256: str | None, rows: tuple[int, int] | None) -> None:
        self.sha256, self.rows = sha256 or UNKNOWN, rows
