"""Which cache entry is the config's, as far as that is known before anything is fetched."""

from __future__ import annotations

from typing import Any

from ups.config import Parsed
from ups.latents import store
from ups.latents.key import ENCODED_SPLITS, hash_fields, key_fields
from ups.validate.check import replaced_among
from ups.validate.sources import Sources

KEY_SECTIONS = (
    "data.task",
    "data.sources",
    "data.grid_points",
    "latent",
    "encoder",
    "training.latent_cache_dtype",
)
UNKNOWN = "not known"


def finds_entry(parsed: Parsed, sources: Sources) -> bool | None:
    """Whether a run finds its latents in the cache, by a look at the pointers alone.

    None where that is not known, or a run needs none.
    """
    config = parsed.config
    if config.features.preload == "off":
        return None
    directory = config.training.latent_cache_dir
    if not config.features.reuse_cache or not any(directory.glob(f"*/{store.POINTER_NAME}")):
        return False
    fields, why_not = cache_key_fields(parsed, sources)
    if fields is None or why_not:
        return None
    return bool(store.current_generation(store.entry_dir(directory, hash_fields(fields))))


def cache_key_fields(parsed: Parsed, sources: Sources) -> tuple[dict[str, Any] | None, str]:
    """The fields of the cache key, and why the key is not known, if it is not."""
    if faulty := replaced_among(parsed, KEY_SECTIONS):
        return None, f"the key depends on {', '.join(faulty)}, which is faulty"
    encoded = {split: sources.get(split, ()) for split in ENCODED_SPLITS}
    if missing := [split for split in encoded if not encoded[split]]:
        return None, f"the key depends on the data of {', '.join(missing)}, which are not known"
    identities: dict[str, list[_Identity]] = {
        split: [_Identity(k.sha256, k.rows) for k in encoded[split]] for split in encoded
    }
    unknown = [k.wanted.uri for known in encoded.values() for k in known if k.sha256 is None]
    why_not = f"the key depends on the SHA-256 of {', '.join(dict.fromkeys(unknown))}"
    return key_fields(parsed.config, identities), why_not if unknown else ""


class _Identity:
    """A source's content and rows, where the content may not be known yet."""

    def __init__(self, sha256: str | None, rows: tuple[int, int] | None) -> None:
        self.sha256, self.rows = sha256 or UNKNOWN, rows
