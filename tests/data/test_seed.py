"""A config's data set is generated into the store where it is missing, task by task."""

from contextlib import closing

import h5py
import pytest

from ups.config import load_config
from ups.data.objectstore import ObjectStore
from ups.data.seed import seed
from ups.errors import ConfigError

COUNTS = {"train": 3, "val": 2, "test": 2}
BUCKET = "seeded"


def task(name, folder, **generate):
    return {
        "name": name,
        "sources": {split: [{"key": f"{folder}/{name}_{split}.h5"}] for split in COUNTS},
        "generate": {"num_trajectories": COUNTS, **generate},
    }


@pytest.fixture
def store(store_env):
    with closing(ObjectStore()) as store:
        yield store


def config_of(*tasks):
    ours = {"task": list(tasks), "bucket": BUCKET, "grid_points": 64}
    data = {"sources": None, "generate": None, **ours}
    return load_config("smoke", {f"data.{key}": value for key, value in data.items()})


def test_what_is_missing_of_each_problem_is_generated_with_its_parameter(store, s3):
    first = task("burgers1d_nu0.1", "seed", nu=0.1)
    lines = []
    assert seed(config_of(first), lambda _, what: lines.append(what)) == ["train", "val", "test"]
    second = task("advection1d", "seed", beta=0.4)
    made = seed(config_of(first, second), lambda _, what: lines.append(what))
    assert made == ["advection1d train", "advection1d val", "advection1d test"]
    assert seed(config_of(first, second), lambda *_: None) == []
    assert any(line.startswith("advection1d test: 2 trajectories generated") for line in lines)
    with h5py.File(s3.directory / BUCKET / "seed" / "advection1d_train.h5") as file:
        assert file["tensor"].shape == (3, 201, 64)
        assert file.attrs["beta"] == 0.4
    with h5py.File(s3.directory / BUCKET / "seed" / "burgers1d_nu0.1_val.h5") as file:
        assert file.attrs["Nu"] == 0.1
    starts = []
    for split in COUNTS:
        with h5py.File(s3.directory / BUCKET / "seed" / f"advection1d_{split}.h5") as file:
            starts += [start.tobytes() for start in file["tensor"][:, 0]]
    assert len(set(starts)) == sum(COUNTS.values())  # no two splits share a trajectory


def test_more_sources_than_one_cannot_be_generated_and_the_message_names_the_problem(store):
    good, bad = task("advection1d", "x", beta=0.4), task("burgers1d", "x", nu=0.1)
    bad["sources"]["val"] *= 2
    message = "data.task.1.sources.val: found 2 objects, expected 1 with data.task.1.generate"
    with pytest.raises(ConfigError, match=message):
        seed(config_of(good, bad), lambda *_: None)
