"""Read a config: YAML in, frozen models out."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ups import PROJECT_DIR
from ups.config.faults import explain
from ups.config.models import RunConfig
from ups.config.text import read_yaml, shortened
from ups.errors import ConfigError, InvalidConfig

PROJECT_CONFIGS = PROJECT_DIR / "deployments" / "configs"
PARAMETERS = {  # of the flow, short for keys that are changed often
    "latent_dim": "latent.dim",
    "latent_tokens": "latent.tokens",
    "epochs": "stages.operator.epochs",
    "seed": "training.seed",
}
CONFIG_DIR = Path(os.environ.get("UPS_CONFIG_DIR") or PROJECT_CONFIGS).absolute()


def load_config(name_or_path: str | Path, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """Read a config by path, or by name from `CONFIG_DIR`, and apply dotted overrides.

    Raises:
        InvalidConfig: single fields have faults, or, where none has, they break rules together;
            a line for each.
        ConfigError: it is not there, is not YAML as `read_yaml` takes it, or an override leads
            nowhere, or would have no effect.
    """
    path = find_config(name_or_path)
    try:
        tree = read_yaml(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: found {type(tree).__name__}, expected a mapping of sections")
    overrides = overrides or {}
    for dotted, value in overrides.items():
        _set(tree, dotted, value)
    config = parse_config(tree, path.name)
    pairs = config.training.pairs_per_step
    if pairs and "training.batch_size" in overrides and "training.pairs_per_step" not in overrides:
        raise ConfigError(
            f"override 'training.batch_size': it has no effect, as training.pairs_per_step is "
            f"{pairs}: set that, or have it be null for whole trajectories"
        )
    return config


def parse_config(tree: Mapping[str, Any], where: str = "config") -> RunConfig:
    """Validate a config already read; `where` names it in the message of an InvalidConfig."""
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        # Without pydantic's own text, which repeats values: credentials, too.
        raise InvalidConfig(where, explain(error)) from None


def dump_config(config: RunConfig) -> str:
    """The resolved config as YAML that `load_config` takes."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def find_config(name_or_path: str | Path) -> Path:
    """The file of a config, by name or path.

    Raises:
        ConfigError: there is none.
    """
    known = {path.stem: path for path in sorted(CONFIG_DIR.glob("*.yaml"))}
    path = known.get(str(name_or_path), Path(name_or_path))
    try:
        is_file = path.is_file()
    except OSError:  # a name longer than any file's
        is_file = False
    if not is_file:
        raise ConfigError(
            f"no config {shortened(str(name_or_path))}: expected a path, or a name in "
            f"{CONFIG_DIR}: {', '.join(known) or 'it has none, see UPS_CONFIG_DIR'}"
        )
    return path


def _set(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for i, part in enumerate(parents):
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise ConfigError(
                f"override {dotted!r}: {'.'.join(parents[: i + 1])} is a value, not a section"
            )
    tree[last] = copy.deepcopy(value)  # a later override may go into it
