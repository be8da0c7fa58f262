"""The cache key: a hash of everything that determines the bytes of the latents, and of no more."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ups.config import ProblemConfig, Split

FORMAT_VERSION = 2
ENCODED_SPLITS: tuple[Split, ...] = ("train", "val")


class SourceIdentity(Protocol):
    """Content and row range of a source; its path and bucket are not part of it.

    Its parameter is, where not the content tells it, but the file's name or `data.parameter`.
    """

    @property
    def sha256(self) -> str: ...
    @property
    def rows(self) -> tuple[int, int] | None: ...
    @property
    def parameter(self) -> float | None: ...


def key_fields(
    config: ProblemConfig, sources: Mapping[str, Sequence[SourceIdentity]]
) -> dict[str, Any]:
    """The fields that the key is made of; they stand in the manifest too.

    Args:
        config: the entry is the same whatever other problems a run has.
        sources: the staged sources of each split; only the encoded splits are looked at.
    """
    return {
        "format": FORMAT_VERSION,
        "task": config.problem.equation,
        "sources": {
            split: [_source_fields(source) for source in sources[split]] for split in ENCODED_SPLITS
        },
        "grid_points": config.data.grid_points,
        "latent": config.latent.model_dump(),
        "encoder": {"algorithm": 2, **config.encoder.model_dump()},
        "dtype": config.training.latent_cache_dtype,
    }


def _source_fields(source: SourceIdentity) -> dict[str, Any]:
    fields = {"sha256": source.sha256, "rows": list(source.rows) if source.rows else None}
    return fields if source.parameter is None else {**fields, "parameter": source.parameter}


def hash_fields(fields: Mapping[str, Any]) -> str:
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def compute_cache_hash(
    config: ProblemConfig, sources: Mapping[str, Sequence[SourceIdentity]]
) -> str:
    """The cache key: the first 12 hex digits of the SHA-256 of the key fields' canonical JSON."""
    return hash_fields(key_fields(config, sources))


def explain_difference(
    wanted: Mapping[str, Any], cached: Mapping[str, Any], has: str = "the cached entry has"
) -> list[str]:
    """How a cached entry's key fields differ, e.g. `latent.dim 64, the cached entry has 32`."""
    left, right = _flatten(wanted), _flatten(cached)
    return [
        f"{name} {left.get(name, 'absent')}, {has} {right.get(name, 'absent')}"
        for name in sorted(left.keys() | right.keys())
        if left.get(name) != right.get(name)
    ]


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, Mapping):
        items = [(f"{prefix}.{k}" if prefix else str(k), v) for k, v in tree.items()]
    elif isinstance(tree, list) and tree and isinstance(tree[0], Mapping):
        items = [(f"{prefix}[{i}]", v) for i, v in enumerate(tree)]
    else:
        return {prefix: tree}
    return {name: value for key, sub in items for name, value in _flatten(sub, key).items()}
