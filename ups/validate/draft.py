"""Write a config that trains on files which were looked into: a start, to be changed by hand.

Files whose names say a split are taken so; what is missing of val and test is cut from the others
by rows, as PDEBench does it: test first, then val, each a tenth. The rest follows from the data:
tokens that divide the grid, a time stride of about twenty steps, a batch that fits into memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ups.config import SPLITS, RunConfig, Split, parse_config
from ups.data.inspect import Facts
from ups.data.uri import is_address, parse_address
from ups.data.web import is_web
from ups.equations import EQUATIONS
from ups.errors import ConfigError, DataError
from ups.machine.devices import has_gpu_node
from ups.machine.memory import check_sufficient_ram
from ups.validate.memory import Memory, footprint

SHARE = 10  # one in so many trajectories is for val, and one for test
PATCH_POINTS = 32  # of a token
MOST_CHANNELS = 48  # of a token; as many as its points, so that nothing of a frame is lost
LEAST_TOKENS, FEW_TOKENS = 3, 8  # what the operator's convolution needs; what it should have
NUM_STEPS = 20  # operator steps of a trajectory
OPTIMIZER_STEPS = 2500  # as `smoke` takes them
EPOCHS = 10, 200  # at least, and at most
PAIRS = {"cpu": 20, "cuda": 256}  # of a step, where memory allows
STEPS_OF_AN_EPOCH = 8  # at least
MARK = re.compile(r"(?:^|[^a-z])(train|val|valid|validation|test)(?![a-z])")
SPLIT_OF: dict[str, Split] = {"train": "train", "test": "test"}  # the others mean val
OPERATOR = {"kind": "latent_cnn", "hidden_dim": 64, "num_blocks": 3, "mlp_ratio": 2}

Tree = dict[str, Any]


def draft(found: Sequence[Facts], name: str) -> str:
    """The config, as YAML; it has been loaded once.

    Args:
        name: of the config.
    Raises:
        DataError: a file cannot be trained on.
        ConfigError: the files do not go together, or have too few trajectories.
    """
    points, num_frames = _require_alike(found)
    data, num_train = _data(found, points)
    stride = max(1, round((num_frames - 1) / NUM_STEPS))
    tokens, dim = choose_tokens(points)
    device = "cuda" if has_gpu_node() else "cpu"
    tree: Tree = {
        "name": name,
        "data": data,
        "latent": {"dim": dim, "tokens": tokens},
        "operator": OPERATOR | ({} if tokens >= LEAST_TOKENS else {"token_kernel": 1}),
        "training": {"time_stride": stride, "rollout_horizon": 1, "ema_decay": 0.99},
        "stages": {"operator": {"epochs": EPOCHS[0], "optimizer": {"lr": 4e-3}}},
    }
    num_pairs = num_train * max(1, -(-num_frames // stride) - 1)
    pairs = _choose_pairs(tree, name, num_frames, num_pairs, device)
    tree["training"] = {"pairs_per_step": pairs, **tree["training"]}
    epochs = math.ceil(OPTIMIZER_STEPS / math.ceil(num_pairs / pairs))
    tree["stages"]["operator"]["epochs"] = min(max(epochs, EPOCHS[0]), EPOCHS[1])
    parse_config(tree, name)
    head = (
        f"# A start, by `ups data inspect`: {num_train} trajectories of train, for the {device}.\n"
    )
    return head + yaml.safe_dump(tree, sort_keys=False, default_flow_style=None, width=100)


def _require_alike(found: Sequence[Facts]) -> tuple[int, int]:
    """Points and frames, which all files have.

    Raises:
        DataError: a file cannot be trained on. ConfigError: another has others.
    """
    for facts in found:
        if facts.faults or facts.shape is None:
            why = facts.faults[0] if facts.faults else "its shape is not known"
            raise DataError(f"no config is written, as {facts.where} cannot be trained on: {why}")
    first = found[0]
    assert first.shape is not None
    for facts in found:
        assert facts.shape is not None
        if facts.shape[1:] != first.shape[1:]:
            raise ConfigError(
                f"{facts.name} has {facts.shape[1]} frames of {facts.shape[2]} points, "
                f"{first.name} {first.shape[1]} of {first.shape[2]}: one config takes files of one "
                "shape; inspect them apart"
            )
    return first.shape[2], first.shape[1]


def _data(found: Sequence[Facts], points: int) -> tuple[Tree, int]:
    """The section `data`, and how many trajectories train has."""
    groups: dict[tuple[str, float], list[Facts]] = {}
    for facts in found:
        assert facts.equation is not None
        assert facts.parameter is not None
        groups.setdefault((facts.equation, facts.parameter), []).append(facts)
    places = {facts.where: _place(facts) for facts in found}
    buckets = {place["bucket"] for place in places.values() if "bucket" in place}
    common: Tree = {"bucket": buckets.pop()} if buckets else {}
    for place in places.values():
        place.pop("bucket", None)  # all are of one folder
    problems, total = [], 0
    for (equation, value), of_group in sorted(groups.items()):
        sources, num_train = _split(of_group, places)
        total += num_train
        own: Tree = {"sources": sources}
        parameter = EQUATIONS[equation].parameter
        if any(facts.parameter_from == "as given" for facts in of_group):
            own["parameter"] = {parameter: value}
        problems.append({"name": f"{equation}_{parameter}{value:g}", **own})
    if len(problems) == 1:
        ((equation, _),) = groups
        alone = {key: value for key, value in problems[0].items() if key != "name"}
        return {"task": equation, **common, "grid_points": points, **alone}, total
    return {"task": problems, **common, "grid_points": points}, total


def _place(facts: Facts) -> Tree:
    if not is_address(facts.where):
        return {"path": str(Path(facts.where).absolute())}
    if is_web(facts.where):
        return {"url": facts.where}
    address = parse_address(facts.where)
    return {"bucket": address.bucket, "key": address.key}


def _split(found: Sequence[Facts], places: Mapping[str, Tree]) -> tuple[Tree, int]:
    """The sources of each split, and how many trajectories train has.

    Raises:
        ConfigError: they are too few.
    """
    marked: dict[Split, list[Facts]] = {split: [] for split in SPLITS}
    for facts in found:
        said = MARK.findall(facts.name.lower())
        marked[SPLIT_OF.get(said[-1], "val") if said else "train"].append(facts)
    pool = marked["train"]
    total = sum(_num(facts) for facts in pool)
    to_cut = [split for split in ("test", "val") if not marked[split]]
    share = max(1, total // SHARE)
    if total <= share * len(to_cut):
        raise ConfigError(
            f"found {total} trajectories to train on, expected at least {len(to_cut) + 1}, for "
            f"{', '.join(['train', *to_cut])}: add files"
        )
    sources: Tree = {split: [places[f.where] for f in marked[split]] for split in SPLITS}
    first = 0
    for split in to_cut:
        sources[split] = _rows(pool, places, first, first + share)
        first += share
    sources["train"] = _rows(pool, places, first, total)
    return sources, total - first


def _rows(pool: Sequence[Facts], places: Mapping[str, Tree], first: int, end: int) -> list[Tree]:
    """Sources that hold the trajectories [first, end), counted through all files."""
    found, begin = [], 0
    for facts in pool:
        lo, hi = max(first - begin, 0), min(end - begin, _num(facts))
        if lo < hi:
            rows = {} if (lo, hi) == (0, _num(facts)) else {"rows": [lo, hi]}
            found.append({**places[facts.where], **rows})
        begin += _num(facts)
    return found


def _num(facts: Facts) -> int:
    assert facts.shape is not None
    return facts.shape[0]


def choose_tokens(points: int) -> tuple[int, int]:
    """Tokens of a frame, which divide its points, and their channels.

    As near to 32 points a token as the divisors allow, and from 8 tokens on.
    """
    divisors = [n for n in range(1, points + 1) if points % n == 0]
    wanted = max(FEW_TOKENS, points / PATCH_POINTS)
    enough = [n for n in divisors if n >= LEAST_TOKENS] or divisors
    tokens = min(enough, key=lambda n: abs(math.log(n / wanted)))
    return tokens, min(MOST_CHANNELS, points // tokens)


def _choose_pairs(tree: Tree, name: str, num_frames: int, num_pairs: int, device: str) -> int:
    """Pairs of a step that fit into half of what is free, and leave an epoch some steps.

    Raises:
        ConfigError: the tree is no config.
    """
    memory = Memory.of_this_machine(ask_gpu=device == "cuda")
    free_mb = memory.ram_mb if memory.gpu_mb is None else memory.gpu_mb
    pairs = max(1, min(PAIRS[device], num_pairs // STEPS_OF_AN_EPOCH))
    while pairs > 1:
        config = _with_pairs(tree, name, pairs)
        needed_mb = footprint(config, num_frames, device).num_bytes / 1e6
        if check_sufficient_ram(needed_mb, margin=0.5, available_mb=free_mb):
            break
        pairs //= 2
    return pairs


def _with_pairs(tree: Tree, name: str, pairs: int) -> RunConfig:
    return parse_config({**tree, "training": {**tree["training"], "pairs_per_step": pairs}}, name)
