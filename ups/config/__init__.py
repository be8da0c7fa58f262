"""What a run is made with: the models of the YAML, and the ways to read it."""

from ups.config.changes import MOST_NAMED, flatten, load_changed, run_title, short_key
from ups.config.data import SPLITS, Model, Problem, Source, Split
from ups.config.faults import leaves
from ups.config.loading import (
    CONFIG_DIR,
    PARAMETERS,
    PROJECT_CONFIGS,
    dump_config,
    find_config,
    load_config,
    parse_config,
)
from ups.config.models import Features, Latent, Optimizer, ProblemConfig, RunConfig, Training
from ups.config.operators import (
    FNO,
    OPERATORS,
    LatentCNN,
    LatentSettings,
    LatentTransformer,
    OperatorSettings,
    UNet,
)
from ups.config.text import read_yaml, shortened
from ups.config.urls import WEB_SCHEMES, web_place

__all__ = [
    "CONFIG_DIR",
    "FNO",
    "MOST_NAMED",
    "OPERATORS",
    "PARAMETERS",
    "PROJECT_CONFIGS",
    "SPLITS",
    "Features",
    "Latent",
    "LatentCNN",
    "LatentSettings",
    "LatentTransformer",
    "Model",
    "OperatorSettings",
    "Optimizer",
    "Problem",
    "ProblemConfig",
    "RunConfig",
    "Source",
    "Split",
    "Training",
    "UNet",
    "WEB_SCHEMES",
    "dump_config",
    "find_config",
    "flatten",
    "leaves",
    "load_changed",
    "load_config",
    "parse_config",
    "read_yaml",
    "run_title",
    "short_key",
    "shortened",
    "web_place",
]
