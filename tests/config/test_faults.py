"""A config with faults: all of them at once, each by its whole key."""

import copy

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ups.config import CONFIG_DIR, RunConfig, load_config, parse_config
from ups.errors import ConfigError, InvalidConfig

SMOKE = yaml.safe_load((CONFIG_DIR / "smoke.yaml").read_text())


def faults(overrides):
    """Of the smoke config with these values: key → text."""
    with pytest.raises(InvalidConfig) as error:
        load_config("smoke", overrides)
    lines = str(error.value).splitlines()
    assert lines == [f"smoke.yaml: {fault}" for fault in error.value.faults]
    return dict(fault.split(": ", 1) for fault in error.value.faults)


def test_faults_of_values_are_reported_together_and_what_only_follows_from_them_is_not():
    found = faults(
        {
            "latnt": {},
            "latent.dimm": 3,
            "training.batch_size": "many",
            "data.sources.val": [{"key": "/etc/x.h5"}],
            "data.grid_points": "a lot",
            "latent.tokens": 24,  # does not divide the grid, which is not known
        }
    )
    assert sorted(found) == [
        "data.grid_points",
        "data.sources.val.0.key",
        "latent.dimm",
        "latnt",
        "training.batch_size",
    ]
    assert found["latnt"] == "unknown key; did you mean latent?"
    assert found["latent.dimm"] == "unknown key; did you mean latent.dim?"
    assert found["training.batch_size"].startswith("found 'many'")
    assert "without a leading /" in found["data.sources.val.0.key"]


def test_values_that_do_not_agree_are_reported_together_when_each_is_valid():
    found = faults({"latent.tokens": 24, "operator": {"depths": [1, 1], "hidden_dim": 30}})
    assert sorted(found) == ["latent.tokens", "operator.depths", "operator.hidden_dim"]


def test_a_split_that_is_not_named_is_found_beside_other_faults():
    found = faults({"data.sources": {"train": [{"key": "a.h5"}]}, "data.bukket": 1})
    assert found == {
        "data.sources": "found no val, test, expected all of train, val, test",
        "data.bukket": "unknown key; did you mean data.bucket?",
    }


def test_a_key_of_another_section_and_the_flows_name_of_one_are_told_apart():
    found = faults({"lr": 1, "latent_dim": 64, "training.epochs": 3, "latent.x": 0})
    assert found == {
        "lr": "unknown key; did you mean stages.operator.optimizer.lr?",
        "latent_dim": "unknown key; did you mean latent.dim?",
        "training.epochs": "unknown key; did you mean stages.operator.epochs?",
        "latent.x": "unknown key; known keys: dim, tokens",
    }


def test_a_config_of_nothing_has_one_fault():
    with pytest.raises(ConfigError, match="^x: name: missing, and it has no default$"):
        parse_config({}, "x")


def paths(tree, prefix=()):
    for key, value in tree.items():
        yield (*prefix, key)
        if isinstance(value, dict):
            yield from paths(value, (*prefix, key))


JUNK = st.sampled_from([None, -1, 0, 7.5, "junk", [], [1, "x"], {}, {"a": 1}, True, {1: {2: 3}}])


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(st.sampled_from(list(paths(SMOKE))), JUNK, min_size=1, max_size=5))
def test_junk_anywhere_ends_in_faults_or_in_the_config_that_was_written(changes):
    tree = copy.deepcopy(SMOKE)
    for path, value in changes.items():
        at = tree
        for part in path[:-1]:
            at = at.get(part) if isinstance(at, dict) else None
        if isinstance(at, dict):
            at[path[-1]] = value
    try:
        expected = RunConfig.model_validate(tree)
    except ValueError:
        with pytest.raises(InvalidConfig) as error:
            parse_config(tree, "x")
        assert error.value.faults
    else:
        assert parse_config(tree, "x") == expected
