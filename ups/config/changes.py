"""What of a config was changed, as pairs of dotted keys and values, and as the name of a run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ups.config.loading import find_config, load_config
from ups.config.models import RunConfig
from ups.config.text import read_yaml

UNDERSTOOD = ("training.", "stages.operator.")  # sections that a run's name does without
# Keys that a run's name leaves out: where things lie, how many are generated there, and the name.
UNNAMED = re.compile(
    r"name|runs_dir|training\.latent_cache_dir|data\.root|encode\.address"
    r"|data\.(.+\.)?(sources|num_trajectories)(\..+)?"
)
MOST_NAMED = 4  # changes in the name of a run
MOST_CHARS = 24  # of a value in it


def load_changed(
    name_or_path: str | Path, overrides: Mapping[str, Any] | None = None
) -> tuple[RunConfig, dict[str, Any]]:
    """Read a config as `load_config`, and say what the overrides change of it.

    Returns:
        It, and dotted key → value of what is not as in the file; as given where the file alone is
        no valid config.
    Raises:
        ConfigError: see `load_config`.
    """
    config = load_config(name_or_path, overrides)
    if not overrides:
        return config, {}
    try:
        before = RunConfig.model_validate(read_yaml(find_config(name_or_path).read_bytes()))
    except ValidationError:
        return config, dict(overrides)
    return config, changes(before, config)


def changes(before: RunConfig, after: RunConfig) -> dict[str, Any]:
    """Dotted key → its value in `after`, of those that differ; None where it has none there."""
    old, new = (dict(flatten(config.model_dump(mode="json"))) for config in (before, after))
    return {key: new.get(key) for key in {**old, **new} if old.get(key) != new.get(key)}


def flatten(tree: Mapping[str, Any], parents: str = "") -> Iterator[tuple[str, Any]]:
    """`{"latent": {"dim": 32}}` → `("latent.dim", 32)`; a list but that of problems is a value."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{parents}{key}.")
        elif f"{parents}{key}" == "data.task" and isinstance(value, list):
            yield from flatten({problem["name"]: problem for problem in value}, f"{parents}{key}.")
        else:
            yield f"{parents}{key}", value


def run_title(name: str, changed: Mapping[str, Any]) -> str:
    """`smoke latent.dim=48 seed=1`: the name of a config, and what was changed but for places."""
    named = {key: value for key, value in changed.items() if not UNNAMED.fullmatch(key)}
    texts = [f"{short_key(key)}={_text(value)}" for key, value in named.items()]
    if len(texts) > MOST_NAMED:
        texts[MOST_NAMED:] = [f"and {len(texts) - MOST_NAMED} more"]
    return " ".join([name, *texts])


def short_key(key: str) -> str:
    """A dotted key without a section that is understood: `training.seed` is `seed`."""
    for section in UNDERSTOOD:
        key = key.removeprefix(section)
    return key


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MOST_CHARS else f"{text[: MOST_CHARS - 1]}…"
