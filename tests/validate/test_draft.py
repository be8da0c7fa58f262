"""Configs that are drafted for data that somebody brings: they load, and fit the data."""

import pytest
import yaml

from ups.config import parse_config
from ups.data.inspect import Facts
from ups.errors import ConfigError, DataError
from ups.machine import memory
from ups.validate.draft import choose_tokens, draft


def facts(name="a.h5", num=100, frames=201, points=1024, **changes):
    given = {
        "where": f"s3://mine/of/{name}",
        "name": name,
        "num_bytes": 1,
        "shape": (num, frames, points),
        "equation": "burgers1d",
        "parameter": 0.01,
        "parameter_from": "by the file",
    }
    return Facts(**{**given, **changes})


def drafted(*found):
    return parse_config(yaml.safe_load(draft(found, "mine")))


def rows(config, split):
    (problem,) = config.data.problems
    return [(source.key.rpartition("/")[2], source.rows) for source in problem.sources[split]]


def test_one_file_is_cut_by_rows_and_every_row_is_in_one_split():
    config = drafted(facts())
    assert (config.name, config.data.bucket, config.data.task) == ("mine", "mine", "burgers1d")
    assert rows(config, "test") == [("a.h5", (0, 10))]
    assert rows(config, "val") == [("a.h5", (10, 20))]
    assert rows(config, "train") == [("a.h5", (20, 100))]
    assert (config.latent.tokens, config.latent.dim, config.training.time_stride) == (32, 32, 10)
    with pytest.raises(ConfigError, match="found 2 trajectories to train on, expected at least 3"):
        drafted(facts(num=2))
    assert rows(drafted(facts(num=3)), "train") == [("a.h5", (2, 3))]


def test_shards_are_cut_through_and_names_that_say_a_split_are_believed():
    config = drafted(*(facts(f"{i}.h5", 15) for i in range(4)))
    assert rows(config, "test") == [("0.h5", (0, 6))]
    assert rows(config, "val") == [("0.h5", (6, 12))]
    assert rows(config, "train") == [("0.h5", (12, 15)), *((f"{i}.h5", None) for i in (1, 2, 3))]
    named = drafted(*(facts(f"u_{s}_000.h5") for s in ("train", "valid", "test")))
    assert [rows(named, s)[0][0] for s in ("train", "val", "test")] == [
        "u_train_000.h5", "u_valid_000.h5", "u_test_000.h5"
    ]  # fmt: skip
    partly = drafted(facts("Train.h5", 40), facts("test.h5", 9))
    assert rows(partly, "test") == [("test.h5", None)]
    assert rows(partly, "val") == [("Train.h5", (0, 4))]
    assert rows(drafted(facts("latest.h5", 10)), "test") == [("latest.h5", (0, 1))]


@pytest.mark.parametrize(
    ("points", "tokens", "dim"),
    [(1024, 32, 32), (512, 16, 32), (500, 20, 25), (101, 101, 1), (256, 8, 32), (64, 8, 8),
     (4096, 128, 32), (2, 2, 1), (1000, 25, 40), (4093, 4093, 1)],
)  # fmt: skip
def test_the_tokens_divide_the_grid_and_the_config_loads(points, tokens, dim):
    assert choose_tokens(points) == (tokens, dim)
    config = drafted(facts(points=points, frames=41))
    assert config.patch_points * tokens == config.data.grid_points == points


@pytest.mark.parametrize(("frames", "stride"), [(2, 1), (41, 2), (101, 5), (512, 26)])
def test_a_trajectory_has_about_twenty_steps(frames, stride):
    assert drafted(facts(frames=frames)).training.time_stride == stride


def test_the_batch_is_what_memory_and_the_data_allow(monkeypatch):
    assert drafted(facts(num=1000)).training.pairs_per_step == 20
    few = drafted(facts(num=3))
    assert few.training.pairs_per_step == 2  # 20 pairs in all
    assert few.stages.operator.epochs == 200
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: type("M", (), {
        "available": 8e6, "total": 8e6})())  # fmt: skip
    assert drafted(facts(num=1000)).training.pairs_per_step < 20


def test_several_values_of_the_parameter_are_several_tasks():
    found = facts("a.h5"), facts("b.h5", parameter=0.1), facts("c.h5", equation="advection1d")
    config = drafted(*found)
    names = ["advection1d_beta0.01", "burgers1d_nu0.01", "burgers1d_nu0.1"]
    assert [problem.name for problem in config.data.problems] == names
    assert [len(problem.sources) for problem in config.data.problems] == [3, 3, 3]


def test_what_cannot_be_trained_on_together_is_refused():
    with pytest.raises(DataError, match="s3://mine/of/a.h5 cannot be trained on: it is broken"):
        drafted(facts(faults=("it is broken",)))
    with pytest.raises(ConfigError, match="b.h5 has 101 frames of 1024 points, a.h5 201 of 1024"):
        drafted(facts(), facts("b.h5", frames=101))


def test_a_local_file_is_named_by_its_path_and_a_parameter_that_was_given_stands_in_the_config():
    config = drafted(facts(where="some/a.h5", parameter_from="as given"))
    (source,) = config.data.sources["train"]
    assert source.path.is_absolute()
    assert source.path.parts[-2:] == ("some", "a.h5")
    assert config.data.parameter.nu == 0.01


def test_a_file_of_a_web_server_is_named_by_its_url():
    config = drafted(facts(where="https://host/of/a.h5"))
    assert {source.url for source in config.data.sources["train"]} == {"https://host/of/a.h5"}
