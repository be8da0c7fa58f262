"""Scenarios: each a config that loads, in folders of its own, one optimisation off at a time.

None is favoured by what the one before it leaves behind.
"""

from collections import Counter
from itertools import pairwise

import pytest

from ups.config import Features, load_config
from ups.errors import ConfigError
from ups.startup.measure.scenarios import (
    BASES,
    BY_NAME,
    SCENARIOS,
    SETS,
    choose,
    in_turn,
    overrides_of,
)


def names(*wanted, has_gpu=False):
    return [scenario.name for scenario in choose(wanted, has_gpu)]


def config_of(scenario, folder):
    return load_config("benchmark", overrides_of(scenario, folder, 64))


def test_a_set_is_the_plans_runs_and_a_scenario_brings_the_one_it_is_compared_with():
    assert names("nightly") == names("plan") == ["legacy", "cold", "warm", "changed-config"]
    assert names("no-warm_up", "no-reuse_cache") == ["cold", "warm", "no-warm_up", "no-reuse_cache"]


def test_what_needs_a_gpu_is_left_out_of_a_set_where_there_is_none():
    assert "no-gpu_encode" in names("all", has_gpu=True)
    assert set(names("all", has_gpu=True)) - set(names("all")) == {"no-gpu_encode"}
    with pytest.raises(ConfigError, match="no-gpu_encode needs a GPU"):
        names("no-gpu_encode")


def test_an_unknown_scenario_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match="found 'hot', expected sets .*nightly.*legacy, cold"):
        names("cold", "hot")
    with pytest.raises(ConfigError, match="found none"):
        names()


def test_each_feature_has_a_scenario_that_switches_it_off_alone():
    touched = {
        key.removeprefix("features.")
        for scenario in SCENARIOS
        if len(scenario.overrides) == 1
        for key in scenario.overrides
        if key.startswith("features.")
    }
    assert touched == set(Features.model_fields)
    assert set(SETS["all"]) == set(BY_NAME)


def test_a_scenario_differs_from_its_base_in_one_thing(tmp_path):
    assert {base for base in BASES.values() if base} == {"cold", "warm", "changed-config"}
    for scenario in (scenario for scenario in SCENARIOS if scenario.base):
        base = BY_NAME[scenario.base]
        assert scenario.before == base.before
        mine, others = (config_of(s, tmp_path).features.model_dump() for s in (scenario, base))
        different = [name for name, value in mine.items() if value != others[name]]
        assert len(different) + len(scenario.env) == 1, scenario.name


def test_a_changed_config_is_another_cache_entry_than_the_one_before(tmp_path):
    changed, cold = (config_of(BY_NAME[name], tmp_path) for name in ("changed-config", "cold"))
    assert changed.latent != cold.latent


def test_no_two_scenarios_share_a_folder(tmp_path):
    folders = [
        path
        for config in (config_of(scenario, tmp_path) for scenario in SCENARIOS)
        for path in (config.data.root, config.training.latent_cache_dir, config.runs_dir)
    ]
    assert len(set(folders)) == 3 * len(SCENARIOS)
    assert all(folder.is_relative_to(tmp_path) for folder in folders)


def test_the_number_of_trajectories_decides_the_objects(tmp_path):
    config = config_of(BY_NAME["cold"], tmp_path)
    assert config.data.generate.num_trajectories["train"] == 64
    assert config.data.sources["train"][0].key == "burgers1d/benchmark-64/burgers1d_train.h5"


def test_a_benchmark_of_several_problems_shares_its_trajectories_among_them(tmp_path):
    overrides = overrides_of(BY_NAME["cold"], tmp_path, 96, "smoke_mixed")
    config = load_config("smoke_mixed", overrides)
    before = load_config("smoke_mixed").data.problems
    for task, other in zip(config.data.problems, before, strict=True):
        assert (task.name, task.equation) == (other.name, other.equation)
        assert task.generate.num_trajectories["train"] == 32
        assert task.generate.parameter_of(task.equation) == other.generate.parameter_of(
            task.equation
        )
        assert task.sources["val"][0].key == f"{task.name}/benchmark-32/{task.name}_val.h5"


@pytest.mark.parametrize("num", range(1, 12))
def test_each_contender_takes_every_place_and_follows_every_other_equally_often(num):
    num_rounds = num if num % 2 == 0 else 2 * num
    rounds = [in_turn(range(num), repeat) for repeat in range(1, num_rounds + 1)]
    assert all(sorted(r) == list(range(num)) for r in rounds)
    times = num_rounds // num
    places = Counter((one, place) for r in rounds for place, one in enumerate(r))
    assert set(places.values()) == {times}
    follows = Counter(pair for r in rounds for pair in pairwise(r))
    assert len(follows) == num * (num - 1)
    assert set(follows.values()) <= {times}


def test_the_nightly_set_has_cold_behind_another_one_in_each_round():
    chosen = choose(["nightly"], has_gpu=False)
    orders = [["first", *(s.name for s in in_turn(chosen, repeat))] for repeat in range(1, 5)]
    before = [order[order.index("cold") - 1] for order in orders]
    assert sorted(before) == ["changed-config", "first", "legacy", "warm"]
